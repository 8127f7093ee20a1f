"""From the trials of a search to its winner: the checkpoint, its one look at the test split, and the record of the search.

It does not know Ray: it reads the ledger's histories and the checkpoints the trials left in the storage.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from training.checkpoint import CARD_FILE, RECORD_FILE, write_checkpoint
from training.errors import TuningError
from training.fitting.device import choose_device
from training.fitting.fit import best_state_in
from training.fitting.predict import predict_logits
from training.golden import Golden, choose_golden
from training.judging.calibration import fit_temperature, measured
from training.judging.comparison import DEFAULT, EQUAL, SINGLE, WORD_COUNTS, WORDS_ALONE, Answers, compare
from training.judging.judge import account, calibrate, reported_split
from training.judging.metrics import Logits, Probabilities, head_score, probabilities
from training.judging.word_counts import WordCounts
from training.manifest import MANIFEST_FILE
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert
from training.network.prefix import load_trainable_state
from training.report.card import write_card
from training.report.page import write_report
from training.search.deciding.contest import (
    EQUAL_WEIGHTS,
    REFIT_GROUP,
    Standing,
    as_if_stopped,
    is_lost,
    refit_of,
    single_group,
    standings,
    winner,
)
from training.search.plan import BEST_FOLDER, REPORT_FILE, RESULT_FILE, checkpoints
from training.search.prepared import Prepared
from training.search.proposing.ledger import PASSED_OVER, Ledger, TrialHistory
from training.search.proposing.search_space import TrialSettings
from training.search.record import describe, make_record
from training.search.trials.assignment import Assignment, Order
from training.search.trials.build import build_model
from training.search.trials.saved import read_answers, whole_epoch


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        name: Of the search.
        record: Everything that was found; see `report`.
        checkpoint: Path or URI of the best checkpoint's folder.
        report: Path or URI of the HTML report.
        failed: Trials that died, diverged or did not fit into the memory.
    """

    name: str
    record: Mapping[str, Any]
    checkpoint: str
    report: str
    failed: tuple[TrialHistory, ...]


def finish(prepared: Prepared, histories: Sequence[TrialHistory], elapsed_s: float, ledger: Ledger, early: str = "") -> SearchResult:
    """Choose the winner, judge it, and write its checkpoint and the report into the search's folder.

    Args:
        prepared: The search.
        histories: All its trials, ended.
        elapsed_s: Wall seconds it took so far.
        ledger: Of the search; where another process goes on with it, this one must not replace its best.
        early: What to say of a search that has not come to its end, and may go on.

    Raises:
        TuningError: No trial brought a score, or the search is another process's by now.
    """
    table = standings(histories, prepared.settings.tuning)
    if not table:
        causes = ", ".join(f"{one.name} {one.state} {one.error}".rstrip() for one in histories)
        raise TuningError(f"no trial brought a score: {causes}", "Ray's log of a trial, in the cluster's dashboard, tells more")
    best, note = winner(table, prepared.settings.tuning)
    model = load_best(prepared, best.best)
    logits, published = answer_splits(model, prepared), best.best
    refit = refit_of(best.best, histories)
    if refit is not None:
        # It has learned the validation texts: what they say stays what they said before.
        model, published = load_best(prepared, refit), refit
        logits |= {split: found for split, found in answer_splits(model, prepared).items() if split == "test"}
    calibrations = calibrate(prepared.settings.heads, logits["validation"], prepared.dataset.validation.labels)
    comparisons, said_of_floor = compare_all(prepared, histories, best)
    judged = account(prepared.settings, prepared.dataset, logits, calibrations)
    record = make_record(prepared, histories, best, judged, comparisons, elapsed_s, early)
    refitted = "the published model learned from the validation texts too; their figures, temperatures and thresholds are those of before"
    record["notes"] += [said for said in (early, note, refitted if refit else "", *said_of_floor) if said]
    record["published"]["name"] = published.name
    record["cpu_seconds"] += ledger.cut_cpu_s
    if early:
        # Before the version's own record and card are written.
        record["early"] = early
    facts = describe(prepared, best, calibrations, record["metrics"], published.name)
    storage, place = prepared.storage, prepared.folder
    with tempfile.TemporaryDirectory() as folder:
        texts = {RECORD_FILE: json.dumps(record, indent=2), CARD_FILE: write_card(record)}
        write_checkpoint(Path(folder), model, prepared.tokenizer, facts, texts, make_golden(model, prepared))
        # Judging took a while.
        ledger.require_own()
        # A resumed search that had ended already writes the same folder again.
        storage.replace(Path(folder), f"{place}/{BEST_FOLDER}", last=MANIFEST_FILE)
    storage.write_bytes(f"{place}/{RESULT_FILE}", json.dumps(record, indent=2).encode())
    storage.write_bytes(f"{place}/{REPORT_FILE}", write_report(record).encode())
    root = f"{storage.uri}/{place}"
    failed = tuple(history for history in histories if history.has_failed)
    return SearchResult(prepared.name, record, f"{root}/{BEST_FOLDER}", f"{root}/{REPORT_FILE}", failed)


def make_golden(model: TwoHeadBert, prepared: Prepared) -> Golden | None:
    """Let the published model answer some validation texts; none where the settings want none or there are none."""
    settings, table = prepared.settings, prepared.assignment.tokens["validation"]
    chosen = choose_golden(table.lengths, settings.tuning.golden_texts, settings.fit.seed)
    if not len(chosen):
        return None
    texts = table.take(chosen)
    logits = predict_logits(model, TokenInputs(texts, prepared.assignment.pad_id), settings.fit.batch_tokens)
    return Golden([texts[place] for place in range(len(texts))], logits)


def load_best(prepared: Prepared, history: TrialHistory, heads: Sequence[str] | None = None) -> TwoHeadBert:
    """Put the best epoch's parameters of a trial into a whole model.

    Raises:
        TuningError: No checkpoint of it is whole.
    """
    assignment, trial = _of(prepared.assignment, history, heads)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(assignment, trial)
        # Such a model is as it is built: there is no checkpoint of it.
        if history.origin != WORDS_ALONE:
            load_trainable_state(model, best_state_in(_checkpoint(prepared, history, Path(folder))))
    nn.Module.to(model, choose_device())
    return model


def _of(assignment: Assignment, history: TrialHistory, heads: Sequence[str] | None) -> tuple[Assignment, TrialSettings]:
    own = tuple(heads or assignment.settings.heads)
    share = (assignment.with_validation() if history.group == REFIT_GROUP else assignment).of_heads(own)
    return share, Order(history.name, history.group, history.number, own, history.point, history.seed).settings(share.settings)


def _checkpoint(prepared: Prepared, history: TrialHistory, folder: Path) -> Path:
    found = last_checkpoint(prepared, history, folder)
    if found is None:
        hint = f"python -m training tune --resume {prepared.name} trains it again from what is left"
        raise TuningError(f"search {prepared.name!r}: the last checkpoint of {history.name} is damaged", hint)
    return found


def last_checkpoint(prepared: Prepared, history: TrialHistory, folder: Path) -> Path | None:
    """Bring the checkpoint of a trial's last epoch to this machine; nothing where it is gone or damaged.

    Args:
        prepared: The search.
        history: Of the trial.
        folder: Where to put it when the storage is remote.
    """
    for position, path in enumerate(checkpoints(prepared.storage, prepared.name, history.name)):
        found = prepared.storage.download(path, folder / str(position))
        if whole_epoch(found) == history.last["epoch"]:
            return found
    return None


def found_so_far(prepared: Prepared, histories: Sequence[TrialHistory]) -> tuple[list[TrialHistory], list[TrialHistory]]:
    """Tell what is known of a search that is stopped now.

    Returns:
        The trials with a score that counts, and a whole checkpoint of their last epoch; and of the others those that say something by how
        they ended: trained to confirm, and badly, or passed over.
    """
    known = as_if_stopped(histories)
    others = [one for one in known if is_lost(one) or one.state == PASSED_OVER]
    return [one for one in known if one.is_sound and one not in others and _has_checkpoint(prepared, one)], others


def _has_checkpoint(prepared: Prepared, history: TrialHistory) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return last_checkpoint(prepared, history, Path(folder)) is not None


def answer_splits(model: TwoHeadBert, prepared: Prepared) -> dict[str, Logits]:
    """Answer validation and test texts with a whole model; for the published one this is the one look at the test split."""
    assignment, batch_tokens = prepared.assignment, prepared.settings.fit.batch_tokens
    return {
        split: predict_logits(model, TokenInputs(assignment.tokens[split], assignment.pad_id), batch_tokens)
        for split in ("validation", "test")
        if len(assignment.tokens[split])
    }


def compare_all(prepared: Prepared, histories: Sequence[TrialHistory], best: Standing) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare the winning configuration with the default, equal weights, one model per head, and word counts.

    Each side is the mean over its trainings with the same other seeds; where nothing was confirmed, the search's own training.

    Returns:
        The comparisons, and what is to be said of them.
    """
    settings, dataset = prepared.settings, prepared.dataset
    split = reported_split(dataset)
    examples = dataset.splits()[split]
    ours = [_answers(prepared, one, split) for one in best.judged]
    found = []
    for against, origin in ((DEFAULT, "default"), (EQUAL, EQUAL_WEIGHTS)):
        sides = [one for one in standings(histories, settings.tuning) if one.origin == origin and one.number != best.number]
        for side in sides:
            found += compare(settings, examples, against, ours, [_answers(prepared, one, split) for one in side.judged])
    if single := _single_answers(prepared, histories, split):
        found += compare(settings, examples, SINGLE, ours, single)
    counts = WordCounts(dataset.training.texts, [dataset.validation.texts, examples.texts])
    floor = {head: _floor(prepared, counts, head) for head in dataset.classes}
    return found + compare(settings, examples, WORD_COUNTS, ours, [floor]), list(dict.fromkeys(counts.notes))


def _floor(prepared: Prepared, counts: WordCounts, head: str) -> Probabilities:
    """Answer the reported texts with a head's floor: its metric on the validation texts decides how classes weigh.

    Args:
        prepared: The search.
        counts: Of the validation texts, and of those that are reported.
        head: Its name.
    """
    dataset, metric = prepared.dataset, prepared.settings.tuning.score_metrics.get(head, "macro_f1")
    truth, is_ordered = dataset.validation.labels[head], prepared.settings.heads[head].ordered
    tried = []
    # Macro-F1 counts classes alike, so that they have to weigh alike; for the others it depends on the table.
    for is_balanced in (True,) if metric == "macro_f1" else (True, False):
        found = counts.probabilities(dataset.training.labels[head], len(dataset.classes[head]), is_balanced=is_balanced)
        known, asked = (np.log(np.maximum(one, np.finfo(np.float32).eps)) for one in found)
        score = head_score(measured(truth, known, 0, metric, is_ordered=is_ordered).to_dict(), metric)
        # As with ours: only a log loss sees the temperature.
        tried.append((score, probabilities(asked, fit_temperature(known, truth)) if metric == "log_loss" else found[1]))
    return max(tried, key=lambda one: one[0])[1]


def _single_answers(prepared: Prepared, histories: Sequence[TrialHistory], split: str) -> list[Answers]:
    """Put the trainings of each head's own best model side by side, as if one model had answered."""
    sides: list[list[Answers]] = []
    for head in prepared.settings.heads:
        group = standings(histories, prepared.settings.tuning, single_group(head))
        if not group:
            return []
        best, _ = winner(group, prepared.settings.tuning.model_copy(update={"mode": "score"}))
        sides.append([_answers(prepared, one, split, (head,)) for one in best.judged])
    return [{head: values for side in aligned for head, values in side.items()} for aligned in zip(*sides, strict=False)]


def _answers(prepared: Prepared, history: TrialHistory, split: str, heads: Sequence[str] | None = None) -> Answers:
    """Return what a training answers: what it wrote down when it ended, or else what its checkpoint answers now."""
    with tempfile.TemporaryDirectory() as folder:
        own = None if history.origin == WORDS_ALONE else _checkpoint(prepared, history, Path(folder))
        written = read_answers(own, prepared.assignment.tokens) if own else None
    logits = written or answer_splits(load_best(prepared, history, heads), prepared)
    labels = prepared.dataset.validation.labels
    # As in serving: each training with its own temperature. Only a log loss sees the difference.
    temperatures = {head: fit_temperature(values, labels[head]) for head, values in logits["validation"].items()}
    return {head: probabilities(values, temperatures[head]) for head, values in logits[split].items()}
