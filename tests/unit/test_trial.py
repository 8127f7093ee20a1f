"""What a trial reports: its epochs, and how it ended where it ended badly."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.tune import Checkpoint
from ray.tune.schedulers import TrialScheduler

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.fitting.fit import Fit, best_state_in
from training.fitting.memory import epochs_within_memory
from training.network.encoder import find_encoder
from training.network.model import TwoHeadBert
from training.search.deciding.schedulers import RungScheduler
from training.search.prepared import make_assignment
from training.search.proposing.searcher import HAS_DIVERGED, HAS_NO_MEMORY, IS_LAST
from training.search.trials.assignment import Assignment, Order
from training.search.trials.saved import read_answers, whole_epoch
from training.search.trials.work import Work
from training.settings import TrainingSettings

ORDER = Order(name="trial-0", group="search", number=0, heads=("job",), point={}, seed=7, answers=True)


@pytest.fixture
def assignment(make_encoder: Callable[..., Path], tmp_path: Path) -> Assignment:
    lines = ["text,job", *(f"the {'nurse' if row % 2 else 'driver'} {row},{'nurse' if row % 2 else 'driver'}" for row in range(60))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "fit": {"epochs": 3, "patience": 3, "batch_tokens": 64},
        }
    )
    source = find_encoder(settings.encoder)
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16), str(tmp_path / "storage"))


def train(
    assignment: Assignment, folder: Path, at_epoch: Callable[[int], None] = lambda _: None, order: Order = ORDER
) -> list[dict[str, Any]]:
    """Let a trial train without Ray; what it reports as checkpoint is kept in the folder."""
    reports: list[dict[str, Any]] = []
    kept: list[Path] = []
    folder.mkdir(exist_ok=True)

    def report(metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        reports.append(dict(metrics))
        if checkpoint is not None:
            kept.append(checkpoint.rename(folder / f"epoch-{len(reports)}"))
            checkpoint.mkdir()
            at_epoch(metrics["epoch"])

    work = Work(order, assignment, latest=lambda: Checkpoint.from_directory(str(kept[-1])) if kept else None)
    work.report_epochs(work.epochs(epochs_within_memory), report)
    return reports


def test_every_epoch_is_reported_with_a_whole_checkpoint_and_the_last_one_with_answers(assignment: Assignment, tmp_path: Path) -> None:
    reports = train(assignment, tmp_path)
    assert [(one["epoch"], one[IS_LAST]) for one in reports] == [(1, False), (2, False), (3, True)]
    assert [whole_epoch(tmp_path / f"epoch-{number}") for number in (1, 2, 3)] == [1, 2, 3]
    assert [read_answers(tmp_path / f"epoch-{number}", assignment.tokens) is None for number in (1, 2, 3)] == [True, True, False]
    assert all(one["epoch_cpu_s"] > 0 for one in reports)
    # The same texts in another order are others: answers are told from each other by their place alone.
    turned = {split: table.take(np.arange(len(table))[::-1]) for split, table in assignment.tokens.items()}
    assert read_answers(tmp_path / "epoch-3", turned) is None


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Make every model run out of memory above a number of tokens while it trains."""
    limits = {"tokens": math.inf, "times": 0}
    whole = TwoHeadBert.forward

    def forward(self: TwoHeadBert, input_ids: torch.Tensor | None = None, *others: Any, **named: Any) -> Any:
        # Above frozen layers there are vectors instead.
        if self.training and input_ids is not None and input_ids.numel() > limits["tokens"]:
            limits["times"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, input_ids, *others, **named)

    monkeypatch.setattr(TwoHeadBert, "forward", forward)
    return limits


def test_out_of_memory_once_it_goes_on(assignment: Assignment, tmp_path: Path, limit: dict[str, float]) -> None:
    reports = train(assignment, tmp_path, lambda epoch: limit.update(tokens=40) if epoch == 1 else None)
    assert [one["epoch"] for one in reports] == [1, 2, 3]
    assert not any(one.get(HAS_NO_MEMORY) for one in reports)


def test_out_of_memory_twice_it_says_so_with_the_last_figures(assignment: Assignment, tmp_path: Path, limit: dict[str, float]) -> None:
    reports = train(assignment, tmp_path, lambda epoch: limit.update(tokens=1) if epoch == 2 else None)
    assert [(one["epoch"], one[IS_LAST], one.get(HAS_NO_MEMORY, False)) for one in reports] == [
        (1, False, False),
        (2, False, False),
        (2, True, True),
    ]
    assert reports[2]["score"] == reports[1]["score"]


def test_out_of_memory_before_any_epoch_there_are_no_figures(assignment: Assignment, tmp_path: Path, limit: dict[str, float]) -> None:
    limit["tokens"] = 1
    (only,) = train(assignment, tmp_path)
    assert (only["epoch"], only["score"], only[IS_LAST], only[HAS_NO_MEMORY]) == (0, 0.0, True, True)


def test_a_loss_that_is_no_number_is_reported(assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TwoHeadBert.forward

    def forward(self: TwoHeadBert, *others: Any, **named: Any) -> Any:
        output = whole(self, *others, **named)
        output.logits = {head: values * math.nan for head, values in output.logits.items()} if self.training else output.logits
        return output

    monkeypatch.setattr(TwoHeadBert, "forward", forward)
    (only,) = train(assignment, tmp_path)
    assert (only["epoch"], only[IS_LAST], only[HAS_DIVERGED]) == (0, True, True)


def kept_of(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same on any machine, whenever it stopped."""
    return [{key: value for key, value in one.items() if key not in ("epoch_s", "epoch_cpu_s", "worker_bytes")} for one in reports]


def test_a_trial_that_climbs_trains_more_layers_from_where_fewer_were_best(assignment: Assignment, tmp_path: Path) -> None:
    reports = train(assignment, tmp_path / "whole", order=replace(ORDER, depths=(2, 0)))
    below = [one for one in reports if one["depth"] == 2]
    assert [(one["epoch"], one["depth"], one["is_climbing"], one[IS_LAST]) for one in reports] == [
        *((number, 2, False, False) for number in (1, 2, 3)),
        *((number, 0, True, number == 5) for number in (4, 5)),
    ]
    assert all(one["score"] >= below[-1]["score"] for one in reports[3:])
    assert [read_answers(tmp_path / f"whole/epoch-{number}", assignment.tokens) is None for number in range(1, 6)] == [True] * 4 + [False]


def test_wherever_it_was_interrupted_it_ends_the_same(assignment: Assignment, tmp_path: Path) -> None:
    order = replace(ORDER, depths=(2, 0))
    whole = kept_of(train(assignment, tmp_path / "whole", order=order))
    for epoch in (2, 3, 4, 5):
        found = (str((tmp_path / f"whole/epoch-{epoch}").relative_to(tmp_path)),)
        shutil.copytree(tmp_path / f"whole/epoch-{epoch}", tmp_path / "storage" / found[0])
        again = kept_of(train(assignment, tmp_path / f"from-{epoch}", order=replace(order, checkpoints=found)))
        # After the last it says again what it had said: whoever listened may have died before hearing of it.
        assert again == (whole[epoch:] or whole[-1:])


def test_climbing_later_is_climbing_at_once(assignment: Assignment, tmp_path: Path) -> None:
    whole = kept_of(train(assignment, tmp_path / "whole", order=replace(ORDER, depths=(2, 0))))
    first = kept_of(train(assignment, tmp_path / "first", order=replace(ORDER, depths=(2,), answers=False)))
    assert [one | {IS_LAST: False} for one in first] == whole[:3]
    assert first[-1][IS_LAST]
    shutil.copytree(tmp_path / "first/epoch-3", tmp_path / "storage/first")
    second = kept_of(train(assignment, tmp_path / "second", order=replace(ORDER, depths=(2, 0), checkpoints=("first",))))
    assert second == whole[3:]


def stopped_and_kept(assignment: Assignment, folder: Path, epoch: int, order: Order = ORDER) -> tuple[list[dict[str, Any]], str]:
    """What a trial reports of its top layer until a scheduler stops it, and its newest checkpoint in the storage."""
    below = train(assignment, folder, order=replace(order, depths=(2,), answers=False))[:epoch]
    shutil.copytree(folder / f"epoch-{epoch}", Path(assignment.storage) / folder.name)
    return below, folder.name


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_trial_that_was_stopped_climbs_and_is_not_stopped_again(assignment: Assignment, tmp_path: Path, epoch: int) -> None:
    below, kept = stopped_and_kept(assignment, tmp_path / "below", epoch)
    assert not below[-1][IS_LAST]
    scheduler = RungScheduler([[epoch]], 3, 2.0, 7)
    tune: Any = None
    for number, one in ((1, below[-1] | {"score": 2.0, "trained_score": 2.0}), (0, below[-1])):
        decision = scheduler.on_trial_result(tune, SimpleNamespace(config={"number": number}), one)  # type: ignore[arg-type]
    assert decision == TrialScheduler.STOP
    order = replace(ORDER, depths=(2, 0), answers=False, is_climb=True, checkpoints=(kept,))
    reports = train(assignment, tmp_path / "climb", order=order)
    assert [(one["epoch"], one["depth"], one["is_climbing"], one[IS_LAST]) for one in reports] == [
        (epoch + 1, 0, True, False),
        (epoch + 2, 0, True, True),
    ]
    # From the best of what was trained before, and with its score.
    assert all(one["score"] >= below[-1]["score"] for one in reports)
    climber: Any = SimpleNamespace(config=asdict(order))
    assert [scheduler.on_trial_result(tune, climber, one) for one in reports] == [TrialScheduler.CONTINUE] * 2


def test_a_climb_begins_with_the_best_parameters_and_the_last_epoch_of_what_was_stopped(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below, kept = stopped_and_kept(assignment, tmp_path / "below", 2)
    begun: list[tuple[dict[str, torch.Tensor], Any]] = []
    whole = Fit.begin_after
    monkeypatch.setattr(Fit, "begin_after", lambda fit, state, last: (begun.append((dict(state), last)), whole(fit, state, last)))
    train(assignment, tmp_path / "climb", order=replace(ORDER, depths=(2, 0), is_climb=True, checkpoints=(kept,)))
    ((state, last),) = begun
    expected = best_state_in(Path(assignment.storage) / kept)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert (last.number, last.best_score, last.best_number) == (2, below[-1]["best_score"], below[-1]["best_number"])


def test_a_climb_that_was_interrupted_ends_as_if_it_never_was(assignment: Assignment, tmp_path: Path) -> None:
    _, kept = stopped_and_kept(assignment, tmp_path / "below", 1)
    order = replace(ORDER, depths=(2, 0), is_climb=True, checkpoints=(kept,))
    whole = kept_of(train(assignment, tmp_path / "whole", order=order))
    shutil.copytree(tmp_path / "whole/epoch-1", tmp_path / "storage/higher")
    again = kept_of(train(assignment, tmp_path / "again", order=replace(order, checkpoints=("higher", kept))))
    assert again == whole[1:]


def test_a_climb_that_runs_out_of_memory_goes_on_in_smaller_parts(assignment: Assignment, tmp_path: Path, limit: dict[str, float]) -> None:
    _, kept = stopped_and_kept(assignment, tmp_path / "below", 1)
    limit["tokens"] = 40
    reports = train(assignment, tmp_path / "climb", order=replace(ORDER, depths=(2, 0), is_climb=True, checkpoints=(kept,)))
    assert limit["times"] == 1
    assert [(one["epoch"], one["depth"], one.get(HAS_NO_MEMORY, False)) for one in reports] == [(2, 0, False), (3, 0, False)]


def test_what_confirms_a_climb_and_was_interrupted_first_ends_what_it_trains_first(assignment: Assignment, tmp_path: Path) -> None:
    _, kept = stopped_and_kept(assignment, tmp_path / "below", 1)
    for epochs in ((), (3, 1)):
        reports = train(
            assignment, tmp_path / f"again-{len(epochs)}", order=replace(ORDER, depths=(2, 0), checkpoints=(kept,), epochs=epochs)
        )
        assert [(one["epoch"], one["depth"]) for one in reports] == [(2, 2), (3, 2), (4, 0), (5, 0)][: 3 if epochs else 4]


def test_top_layers_alone_have_a_higher_rate_and_who_climbs_moves_as_much_in_half_the_time(assignment: Assignment) -> None:
    (own,) = ORDER.trainings(assignment.settings)
    assert own.fit == assignment.settings.fit
    top, whole = replace(ORDER, depths=(2, 0)).trainings(assignment.settings)
    assert (top.fit.encoder_learning_rate, top.fit.epochs) == (4 * own.fit.encoder_learning_rate, 3)
    assert (whole.fit.encoder_learning_rate, whole.fit.epochs) == (2 * own.fit.encoder_learning_rate, 2)


def test_a_worker_that_is_warm_keeps_nothing_of_the_trials_before(assignment: Assignment, tmp_path: Path) -> None:
    """The same trial first and fifth in one process, with others of other depths and batches between."""
    others = [{}, {"frozen_layers": 2}, {"batch_tokens": 32, "heads/job/hidden_size": 8}, {"frozen_layers": 3}, {}]
    found = [kept_of(train(assignment, tmp_path / str(number), order=replace(ORDER, point=point))) for number, point in enumerate(others)]
    assert found[0] == found[4]
    assert found[0] != found[1]


def test_at_the_end_the_validation_texts_are_learned_too(assignment: Assignment, tmp_path: Path) -> None:
    reports = train(assignment, tmp_path / "one", order=replace(ORDER, depths=(2, 0), epochs=(2, 1)))
    assert [(one["epoch"], one["depth"], one["best_number"], one[IS_LAST]) for one in reports] == [
        (1, 2, 1, False),
        (2, 2, 2, False),
        (3, 0, 3, True),
    ]
    learned = assignment.with_validation()
    training, validation = assignment.tokens["training"], assignment.tokens["validation"]
    assert len(learned.tokens["training"]) == len(training) + len(validation)
    for place in range(len(validation)):
        assert learned.tokens["training"][len(training) + place].tolist() == validation[place].tolist()
    assert learned.labels["training"]["job"].tolist() == [*assignment.labels["training"]["job"], *assignment.labels["validation"]["job"]]
    assert learned.tokens["validation"] is validation
    assert read_answers(tmp_path / "one/epoch-3", assignment.tokens) is not None
