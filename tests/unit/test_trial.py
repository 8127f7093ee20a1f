"""What a trial reports: its epochs, and how it ended where it ended badly."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.fitting.fit import Fit
from training.fitting.memory import epochs_within_memory
from training.network.encoder import find_encoder
from training.network.model import TwoHeadBert
from training.search.assignment import Assignment, Order
from training.search.prepared import make_assignment
from training.search.saved import read_answers, whole_epoch
from training.search.searcher import HAS_DIVERGED, HAS_NO_MEMORY, IS_LAST
from training.search.work import Work
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
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16))


def train(assignment: Assignment, folder: Path, at_epoch: Callable[[int], None] = lambda _: None) -> list[dict[str, Any]]:
    """Let a trial train without Ray; what it reports as checkpoint is kept in the folder."""
    work = Work(ORDER, assignment)
    reports: list[dict[str, Any]] = []
    kept: list[Path] = []

    def report(metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        reports.append(dict(metrics))
        if checkpoint is not None:
            kept.append(checkpoint.rename(folder / f"epoch-{len(reports)}"))
            checkpoint.mkdir()
            at_epoch(metrics["epoch"])

    def restore(fit: Fit) -> None:
        if kept:
            fit.restore(kept[-1])

    work.report_epochs(epochs_within_memory(work.prepare, restore), report)
    return reports


def test_every_epoch_is_reported_with_a_whole_checkpoint_and_the_last_one_with_answers(assignment: Assignment, tmp_path: Path) -> None:
    reports = train(assignment, tmp_path)
    assert [(one["epoch"], one[IS_LAST]) for one in reports] == [(1, False), (2, False), (3, True)]
    assert [whole_epoch(tmp_path / f"epoch-{number}") for number in (1, 2, 3)] == [1, 2, 3]
    assert [read_answers(tmp_path / f"epoch-{number}") is None for number in (1, 2, 3)] == [True, True, False]
    assert all(one["epoch_cpu_s"] > 0 for one in reports)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Make every model run out of memory above a number of tokens while it trains."""
    limits = {"tokens": math.inf}
    whole = TwoHeadBert.forward

    def forward(self: TwoHeadBert, input_ids: torch.Tensor, *others: Any, **named: Any) -> Any:
        if self.training and input_ids.numel() > limits["tokens"]:
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
