"""From the best trial to a checkpoint, its one look at the test split, and the result of the search.

It does not know Ray: it is handed the winner's saved epoch and the list of outcomes.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cluster.storage import Storage
from training.checkpoint import MANIFEST_FILE, EncoderFacts, HeadFacts, ModelFacts, write_checkpoint
from training.dataset import Dataset, Examples
from training.device import choose_device
from training.encoder import EncoderSource
from training.fit import best_state_in, predict_logits
from training.inputs import TokenInputs
from training.metrics import Labels, confusion, joint_accuracy, majority_class, measure_head, selection_score
from training.model import TwoHeadBert
from training.plan import BEST_FOLDER, REPORT_FILE, RESULT_FILE, search_path
from training.prefix import load_trainable_state
from training.report import write_report
from training.search_space import trial_settings
from training.tokens import Tokenizer
from training.trial import Assignment, build_model


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended.

    Attributes:
        position: Its number; 0 is the default configuration.
        state: `finished`, `stopped` early, `diverged`, or `died`.
        score: Its best selection score, or none.
        epoch: Epochs it trained.
        best_epoch: The epoch of its best score.
        metrics: Head → validation metrics in that epoch.
        point: Searched values by path.
        seconds: Time it took.
        error: What it died of.
    """

    position: int
    state: str
    score: float | None
    epoch: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, float]]
    point: Mapping[str, Any]
    seconds: float
    error: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether it ended as a trial should."""
        return self.state in ("finished", "stopped")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        name: Of the search.
        best: Its best trial.
        outcomes: All trials.
        checkpoint: Where the best checkpoint is, as a path or URI.
        report: Where the report is.
        metrics: Split → head → figures of the best checkpoint, with `joint_accuracy` and `score`.
    """

    name: str
    best: TrialOutcome
    outcomes: tuple[TrialOutcome, ...]
    checkpoint: str
    report: str
    metrics: Mapping[str, Mapping[str, Any]]

    @property
    def failed(self) -> list[TrialOutcome]:
        """Trials that died or diverged."""
        return [outcome for outcome in self.outcomes if not outcome.is_sound]


@dataclass(frozen=True)
class Prepared:
    """A search ready to begin.

    Attributes:
        name: Of the search.
        storage: Where its folder is.
        dataset: Its examples.
        source: Its encoder.
        tokenizer: The encoder's, with the token limit.
        assignment: What its trials share.
    """

    name: str
    storage: Storage
    dataset: Dataset
    source: EncoderSource
    tokenizer: Tokenizer
    assignment: Assignment

    @property
    def folder(self) -> str:
        """Path of the search in its storage."""
        return search_path(self.name)


def finish(prepared: Prepared, outcomes: Sequence[TrialOutcome], winner: TrialOutcome, saved: Path) -> SearchResult:
    """Assemble the best checkpoint, score it, and write it with the report into the search's folder.

    Args:
        prepared: The search.
        outcomes: All trials.
        winner: The best of them.
        saved: Folder with the winner's last saved epoch.
    """
    storage, place = prepared.storage, prepared.folder
    model = assemble(prepared.assignment, winner, saved)
    metrics, counts = score_splits(model, prepared)
    facts = describe(prepared, winner, metrics)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), model, prepared.tokenizer, facts)
        _replace_folder(storage, f"{place}/{BEST_FOLDER}", Path(folder))
    record = _record(prepared, outcomes, winner, facts) | {"confusion": counts}
    storage.write_bytes(f"{place}/{RESULT_FILE}", json.dumps(record, indent=2).encode())
    storage.write_bytes(f"{place}/{REPORT_FILE}", write_report(record).encode())
    root = f"{storage.uri}/{place}"
    return SearchResult(prepared.name, winner, tuple(outcomes), f"{root}/{BEST_FOLDER}", f"{root}/{REPORT_FILE}", metrics)


def _record(prepared: Prepared, outcomes: Sequence[TrialOutcome], winner: TrialOutcome, facts: ModelFacts) -> dict[str, Any]:
    dataset = prepared.dataset
    return {
        "name": prepared.name,
        "best": winner.position,
        "trials": [asdict(outcome) for outcome in outcomes],
        "metrics": facts.metrics,
        "classes": dataset.classes,
        "splits": {split: len(examples) for split, examples in dataset.splits().items()},
        "notes": [str(note) for note in dataset.notes],
        "data_digest": dataset.digest,
        "encoder": facts.encoder.model_dump(),
    }


def _replace_folder(storage: Storage, path: str, source: Path) -> None:
    # A resumed search that had ended already writes the same folder again.
    if storage.local_root is not None:
        shutil.rmtree(storage.local_root / path, ignore_errors=True)
    for file in sorted(source.iterdir(), key=lambda file: file.name == MANIFEST_FILE):
        storage.write_bytes(f"{path}/{file.name}", file.read_bytes())


def assemble(assignment: Assignment, winner: TrialOutcome, saved: Path) -> TwoHeadBert:
    """Put the winner's trained parameters into a whole model."""
    model = build_model(assignment, trial_settings(assignment.settings, winner.point))
    load_trainable_state(model, best_state_in(saved))
    nn.Module.to(model, choose_device())
    return model


def score_splits(model: TwoHeadBert, prepared: Prepared) -> tuple[dict[str, dict[str, Any]], dict[str, list[list[int]]]]:
    """Score a model on the validation and, for the one and only time, on the test split.

    Returns:
        Split → head → figures, with `joint_accuracy` and `score`; head → confusion counts on the last split scored.
    """
    metrics: dict[str, dict[str, Any]] = {}
    counts: dict[str, list[list[int]]] = {}
    assignment = prepared.assignment
    splits: dict[str, Examples] = {"validation": prepared.dataset.validation, "test": prepared.dataset.test}
    for split, examples in splits.items():
        if not len(examples):
            continue
        inputs = TokenInputs(prepared.tokenizer.encode(examples.texts), assignment.pad_id)
        predicted = {
            head: logits.argmax(axis=1) for head, logits in predict_logits(model, inputs, assignment.settings.fit.batch_tokens).items()
        }
        metrics[split] = _measure(assignment, examples.labels, predicted)
        counts = {
            head: confusion(examples.labels[head], predicted[head], len(classes)).tolist() for head, classes in assignment.classes.items()
        }
    return metrics, counts


def _measure(assignment: Assignment, truth: Mapping[str, Labels], predicted: Mapping[str, Labels]) -> dict[str, Any]:
    heads = {
        head: measure_head(
            truth[head], np.asarray(predicted[head]), len(classes), majority_class(assignment.training_labels[head], len(classes))
        )
        for head, classes in assignment.classes.items()
    }
    return {head: figures.to_dict() for head, figures in heads.items()} | {
        "joint_accuracy": joint_accuracy(truth, predicted),
        "score": selection_score(heads, assignment.settings.tuning.score_weights),
    }


def describe(prepared: Prepared, winner: TrialOutcome, metrics: Mapping[str, Any]) -> ModelFacts:
    """State what the manifest says about the winner."""
    assignment, source = prepared.assignment, prepared.source
    trial = trial_settings(assignment.settings, winner.point)
    heads = tuple(
        HeadFacts(name=head, classes=assignment.classes[head], ordered=one.ordered, hidden_size=one.hidden_size, dropout=one.dropout)
        for head, one in trial.heads.items()
    )
    return ModelFacts(
        heads=heads,
        text_template=assignment.settings.data.text,
        max_tokens=source.max_tokens,
        encoder=EncoderFacts(name=source.name, model_type=source.model_type, sha256=source.sha256, pooling=source.pooling),
        settings={"fit": trial.fit.model_dump(), "heads": {head: one.model_dump() for head, one in trial.heads.items()}},
        metrics=dict(metrics),
        data_digest=assignment.digest,
        search={"name": prepared.name, "trial": str(winner.position)},
    )
