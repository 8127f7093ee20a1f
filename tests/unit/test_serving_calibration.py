"""The fastest engine answers of those that answer alike; one that is wrong never does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import predictor
from serving.engines import calibration
from serving.engines.calibration import calibrate
from serving.engines.engine import Logits
from serving.engines.torch_engine import precisions
from serving.errors import ServingError
from serving.predictor import Predictor
from training.golden import Golden, write_golden
from training.manifest import read_manifest

ROWS = [np.full(length, length, dtype=np.int32) for length in (5, 9, 700, 1_200, 300, 40)]
LOGITS = {"job": np.array([[2.0, 0.0, -1.0]] * 3 + [[0.0, 1.0, 3.0]] * 3, np.float32), "level": np.eye(6, 2, dtype=np.float32)}
GOLDEN = Golden(ROWS, LOGITS)


class FakeEngine:
    """Takes as long a token as it is told, and answers what is stored, or a little else."""

    name, device, pads = "fake", "cpu", False

    def __init__(self, precision: str, clock: list[float], token_s: float, moved: float = 0.0, flipped: Sequence[int] = ()) -> None:
        self.dtype, self.batches = precision, list[int]()
        self._clock, self._token_s, self._moved, self._flipped = clock, token_s, moved, flipped

    def clock(self) -> float:
        return self._clock[0]

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> Logits:
        self.batches.append(sum(map(len, rows)))
        self._clock[0] += self._token_s * self.batches[-1]
        places = [next(place for place, known in enumerate(ROWS) if known is row) for row in rows]
        answers = {head: values[places] + self._moved * np.eye(1, values.shape[1], dtype=np.float32) for head, values in LOGITS.items()}
        for at, place in enumerate(places):
            if place in self._flipped:
                answers["job"][at] = answers["job"][at][::-1]
        return answers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(calibration, "FEWEST_LABELS", 4)
    return now


def run(clock: list[float], **engines: dict[str, Any]) -> tuple[str, dict[str, calibration.Trial]]:
    made = {name: FakeEngine(name, clock, **facts) for name, facts in engines.items()}
    best, trials = calibrate(made.__getitem__, list(made), GOLDEN, {"job": 2.0})
    assert [trial.is_chosen for trial in trials] == [trial.precision == best.dtype for trial in trials]
    return best.dtype, {trial.precision: trial for trial in trials}


def test_the_fastest_of_those_that_agree_answers(clock: list[float]) -> None:
    chosen, trials = run(clock, float32={"token_s": 1e-3}, int8={"token_s": 5e-4, "moved": 0.01})
    assert chosen == "int8"
    assert trials["float32"].tokens_per_s == pytest.approx(1_000)
    assert trials["int8"].tokens_per_s == pytest.approx(2_000)
    assert trials["int8"].agreement == 1.0
    assert 0 < trials["int8"].shift < 0.02


def test_one_that_is_slower_does_not_and_is_not_asked(clock: list[float]) -> None:
    chosen, trials = run(clock, float32={"token_s": 1e-3}, int8={"token_s": 2e-3})
    assert (chosen, trials["int8"].agreement, trials["int8"].tokens_per_s) == ("float32", None, pytest.approx(500))


def test_too_few_labels_tell_nothing(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST_LABELS", 5)
    chosen, trials = run(clock, float32={"token_s": 1e-3}, int8={"token_s": 1e-4})
    assert (chosen, trials["int8"].agreement) == ("float32", 1.0)


def test_one_that_cannot_compute_here_is_left_out(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    exact = FakeEngine("float32", clock, 1e-3)

    def make(precision: str) -> FakeEngine:
        if precision == "int8":
            raise RuntimeError("could not create a primitive")
        return exact

    best, trials = calibrate(make, ["float32", "int8"], GOLDEN, {})
    assert (best, [trial.precision for trial in trials]) == (exact, ["float32"])
    assert "int8 is not used: this machine cannot compute so" in caplog.text


def test_one_that_is_asked_for_is_judged_by_texts_it_was_not_fitted_to(clock: list[float]) -> None:
    with pytest.raises(ServingError, match="does not answer as the version did"):
        run(clock, int8={"token_s": 1e-3, "flipped": (5,)})
    assert run(clock, int8={"token_s": 1e-3, "flipped": (1,)})[0] == "int8"


@pytest.mark.parametrize("wrong", [{"moved": 1.0}, {"flipped": (4,)}, {"moved": float("nan")}])
def test_one_whose_answers_differ_does_not_however_fast(
    clock: list[float], wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    chosen, trials = run(clock, float32={"token_s": 1e-3}, int8={"token_s": 1e-6, **wrong})
    assert chosen == "float32"
    assert not trials["int8"].agrees
    assert "int8 is not used" in caplog.text


def test_a_probability_may_move_by_so_much_and_its_temperature_counts(clock: list[float]) -> None:
    _, trials = run(clock, float32={"token_s": 1e-3}, int8={"token_s": 9e-4, "moved": 0.05})
    # Those that speeds are not measured with.
    _, others = GOLDEN.divide(calibration.FIRST_TOKENS)
    assert 0 < len(others.rows) < len(ROWS)
    shifts = []
    for head, temperature in (("job", 2.0), ("level", 1.0)):
        before = others.logits[head].astype(np.float64) / temperature
        moved = before + 0.05 / temperature * np.eye(1, before.shape[1])
        shares = [np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (before, moved)]
        shifts.append(np.abs(shares[1] - shares[0]).max(axis=1))
    assert trials["int8"].shift == pytest.approx(float(np.mean(shifts)), rel=1e-3)


def test_the_most_precise_one_must_agree(clock: list[float]) -> None:
    with pytest.raises(ServingError, match="does not answer as the version did"):
        run(clock, float32={"token_s": 1e-3, "flipped": (1,)}, int8={"token_s": 1e-4})


def test_the_first_texts_measure_and_the_others_judge(clock: list[float]) -> None:
    made = {name: FakeEngine(name, clock, speed) for name, speed in (("float32", 1e-3), ("int8", 1e-4))}
    calibrate(made.__getitem__, list(made), GOLDEN, {})
    few, first, others = 5 + 9, 5 + 9 + 700 + 1_200, 300 + 40
    assert made["float32"].batches == [first] * 5 + [few] * 4
    assert made["int8"].batches == [few] * 4 + [first] * 4 + [others]


def test_one_that_is_far_slower_is_asked_about_few_tokens_only(clock: list[float]) -> None:
    made = {name: FakeEngine(name, clock, speed) for name, speed in (("float32", 1e-3), ("int8", 1e-1))}
    best, trials = calibrate(made.__getitem__, list(made), GOLDEN, {})
    assert best is made["float32"]
    assert made["int8"].batches == [5 + 9] * 4
    assert (trials[1].agreement, trials[1].tokens_per_s) == (None, pytest.approx(10))


def with_golden(folder: Path, change: float = 0.0) -> Predictor:
    """Give a checkpoint golden texts, as it answers them or changed."""
    plain = Predictor.load(folder, 1)
    texts = plain.tokenize(["nurse", "the sales driver and the teacher", "9 a b c d", "master " * 20])
    logits = {
        head: values + change * np.eye(1, values.shape[1]) for head, values in plain.engine.forward([one.ids for one in texts]).items()
    }
    write_golden(folder, Golden([one.ids for one in texts], {head: values.astype(np.float32) for head, values in logits.items()}))
    return plain


def test_a_version_with_golden_texts_is_tried_in_every_precision(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_golden(tiny_checkpoint).calibration == ()
    for module in (calibration, predictor):
        monkeypatch.setattr(module, "FIRST_TOKENS", 12)
    monkeypatch.setattr(calibration, "FEWEST_LABELS", 2)
    found = Predictor.load(tiny_checkpoint, 1)
    assert [trial.precision for trial in found.calibration] == precisions()
    assert found.calibration[0].agrees
    assert found.calibration[0].shift == pytest.approx(0.0, abs=1e-5)
    (chosen,) = (trial for trial in found.calibration if trial.is_chosen)
    assert found.engine.dtype == chosen.precision
    assert found.warm() > 0


def test_a_precision_can_be_asked_for_and_must_agree_all_the_same(tiny_checkpoint: Path) -> None:
    with_golden(tiny_checkpoint)
    assert Predictor.load(tiny_checkpoint, 1, precision="float32").engine.dtype == "float32"
    with_golden(tiny_checkpoint, change=3.0)
    with pytest.raises(ServingError, match="does not answer as the version did"):
        Predictor.load(tiny_checkpoint, 1, precision="float32")


def test_a_precision_that_the_machine_lacks_is_refused_with_those_it_has(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engines.int8.is_exact", lambda: False)
    assert precisions() == ["float32"]
    with pytest.raises(ServingError, match=r"serving\.precision is int8, but this machine can compute only with float32, bfloat16"):
        Predictor.load(tiny_checkpoint, 1, precision="int8")


def test_a_version_without_golden_texts_answers_as_it_was_published(tiny_checkpoint: Path) -> None:
    assert "golden.safetensors" not in read_manifest(tiny_checkpoint).files
    found = Predictor.load(tiny_checkpoint, 1)
    assert (found.engine.dtype, found.calibration) == ("float32", ())
    assert Predictor.load(tiny_checkpoint, 1, precision="bfloat16").engine.dtype == "bfloat16"
