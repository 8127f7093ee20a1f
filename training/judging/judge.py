"""What a trained model is worth: metrics with intervals, calibration, abstention, its most confident errors.

Temperatures and thresholds come from the validation texts only. It does not know Ray, the search, or where the logits come from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.dataset import Dataset, Examples
from training.data.labels import MISSING
from training.fit_settings import HeadSettings
from training.judging.abstention import answered, choose_threshold, risk_coverage
from training.judging.bootstrap import interval, joint_accuracy_of, score_of, selection_score_of
from training.judging.calibration import expected_calibration_error, fit_temperature, reliability
from training.judging.metrics import (
    Labels,
    Logits,
    Probabilities,
    confusion,
    has_score,
    head_scores,
    joint_accuracy,
    majority_class,
    measure_head,
    probabilities,
    selection_score,
)
from training.judging.shares import answer_shares
from training.manifest import AnswerShares
from training.settings import TrainingSettings

_MOST_ERRORS = 10
_LEAST = 1e-300


@dataclass(frozen=True)
class HeadCalibration:
    """What serving does with a head's logits.

    Attributes:
        temperature: They are divided by it before the softmax.
        threshold: An answer less probable is abstained from; null never abstains.
        shares: How its answers about the validation texts are spread; null where nobody asks.
    """

    temperature: float
    threshold: float | None
    shares: AnswerShares | None = None


def calibrate(heads: Mapping[str, HeadSettings], logits: Logits, labels: Mapping[str, Labels]) -> dict[str, HeadCalibration]:
    """Fit each head's temperature, its threshold where one is wanted, and the spread of its answers on the validation texts.

    Args:
        heads: Their settings.
        logits: Head → (texts, classes).
        labels: Head → (texts,).
    """
    found = {}
    for head, settings in heads.items():
        temperature = fit_temperature(logits[head], labels[head])
        calibrated = probabilities(logits[head], temperature)
        threshold = None
        if settings.target_precision is not None or settings.target_coverage is not None:
            threshold = choose_threshold(calibrated, labels[head], precision=settings.target_precision, coverage=settings.target_coverage)
        found[head] = HeadCalibration(temperature, threshold, answer_shares(calibrated))
    return found


def reported_split(dataset: Dataset) -> str:
    """Name the split whose figures are reported: `test`, or `validation` where there is none."""
    return "test" if len(dataset.test) else "validation"


def account(
    settings: TrainingSettings,
    dataset: Dataset,
    logits: Mapping[str, Logits],
    calibrations: Mapping[str, HeadCalibration],
    *,
    with_texts: bool = False,
) -> dict[str, Any]:
    """Make the parts of the record that are about one model.

    Args:
        settings: The section `training`.
        dataset: All examples.
        logits: `validation` and, if there are test texts, `test` → head → (texts, classes).
        calibrations: Of each head.
        with_texts: Show the texts of the most confident errors, not only their rows.
    """
    calibrated = {
        split: {head: probabilities(values, calibrations[head].temperature) for head, values in own.items()}
        for split, own in logits.items()
    }
    splits, reported = dataset.splits(), reported_split(dataset)
    return {
        "metrics": {split: _metrics(settings, dataset, splits[split], own) for split, own in calibrated.items()},
        "intervals": _intervals(settings, splits[reported], calibrated[reported]),
        "confusion": {split: _confusion(splits[split], own) for split, own in calibrated.items()},
        "calibration": {
            head: _calibration(head, splits, logits, calibrated, reported) | {"temperature": one.temperature}
            for head, one in calibrations.items()
        },
        "abstention": {
            head: _abstention(settings.heads[head], head, splits, calibrated, reported, one.threshold) for head, one in calibrations.items()
        },
        "errors": {head: _errors(dataset, splits[reported], head, own, with_texts) for head, own in calibrated[reported].items()},
    }


def _calibrated(logits: Logits, calibrations: Mapping[str, HeadCalibration]) -> dict[str, Probabilities]:
    return {head: probabilities(values, calibrations[head].temperature) for head, values in logits.items()}


def _metrics(settings: TrainingSettings, dataset: Dataset, examples: Examples, answers: Mapping[str, Probabilities]) -> dict[str, Any]:
    figures = {
        head: measure_head(
            examples.labels[head],
            own,
            majority_class(dataset.training.labels[head], own.shape[1]),
            is_ordered=settings.heads[head].ordered,
        ).to_dict()
        for head, own in answers.items()
    }
    known = {head: one for head, one in figures.items() if one["count"]}
    scores = head_scores(known, settings.tuning.score_metrics)
    predicted = {head: own.argmax(axis=1) for head, own in answers.items()}
    has_whole = bool(np.logical_and.reduce([labels != MISSING for labels in examples.labels.values()]).any())
    # A head without a label in this split has no figures, not bad ones.
    blank = {head: dict.fromkeys(one) | {"count": 0} for head, one in figures.items() if not one["count"]}
    return (
        figures
        | blank
        | {
            "joint_accuracy": joint_accuracy(examples.labels, predicted) if has_whole else None,
            "score": selection_score(scores, settings.tuning.score_weights) if has_score(scores, settings.tuning.score_weights) else None,
        }
    )


def _intervals(settings: TrainingSettings, examples: Examples, answers: Mapping[str, Probabilities]) -> dict[str, Any]:
    texts, groups, labels = len(examples), examples.groups, examples.labels
    chosen = {head: settings.tuning.score_metrics.get(head, "macro_f1") for head in answers if (labels[head] != MISSING).any()}
    own = {
        head: {
            metric: _in_its_unit(metric, interval(score_of(labels[head], answers[head], metric), texts, groups=groups))
            for metric in dict.fromkeys(("macro_f1", "accuracy", chosen[head]))
        }
        for head in chosen
    }
    score = selection_score_of(
        {head: score_of(labels[head], answers[head], metric) for head, metric in chosen.items()}, settings.tuning.score_weights
    )
    found: dict[str, Any] = dict(own)
    if np.logical_and.reduce([one != MISSING for one in labels.values()]).any():
        found["joint_accuracy"] = interval(joint_accuracy_of(labels, answers), texts, groups=groups)
    return found | {"score": interval(score, texts, groups=groups)} if has_score(chosen, settings.tuning.score_weights) else found


def _in_its_unit(metric: str, ends: tuple[float, float]) -> tuple[float, float]:
    """Turn the ends of exp(-log loss), which is what the statistic gives, back into a log loss."""
    return (-math.log(max(ends[1], _LEAST)), -math.log(max(ends[0], _LEAST))) if metric == "log_loss" else ends


def _confusion(examples: Examples, answers: Mapping[str, Probabilities]) -> dict[str, Any]:
    return {head: confusion(examples.labels[head], own.argmax(axis=1), own.shape[1]).tolist() for head, own in answers.items()}


def _calibration(
    head: str,
    splits: Mapping[str, Examples],
    logits: Mapping[str, Logits],
    calibrated: Mapping[str, Mapping[str, Probabilities]],
    reported: str,
) -> dict[str, Any]:
    errors = {
        split: {
            "ece_before": expected_calibration_error(probabilities(logits[split][head]), splits[split].labels[head]),
            "ece_after": expected_calibration_error(calibrated[split][head], splits[split].labels[head]),
        }
        for split in logits
    }
    truth = splits[reported].labels[head]
    bins = {
        "bins_before": reliability(probabilities(logits[reported][head]), truth),
        "bins_after": reliability(calibrated[reported][head], truth),
    }
    return errors | bins


def _abstention(
    settings: HeadSettings,
    head: str,
    splits: Mapping[str, Examples],
    calibrated: Mapping[str, Mapping[str, Probabilities]],
    reported: str,
    threshold: float | None,
) -> dict[str, Any]:
    wanted = {"precision": settings.target_precision, "coverage": settings.target_coverage}
    reached = {split: answered(own[head], splits[split].labels[head], threshold or 0.0) for split, own in calibrated.items()}
    return reached | {
        "target": {name: value for name, value in wanted.items() if value is not None} or None,
        "threshold": threshold,
        "curve": risk_coverage(calibrated[reported][head], splits[reported].labels[head]),
    }


def _errors(dataset: Dataset, examples: Examples, head: str, answers: Probabilities, with_texts: bool) -> list[dict[str, Any]]:
    """List the wrong answers the model was surest of, by row."""
    truth, answer, classes = examples.labels[head], answers.argmax(axis=1), dataset.classes[head]
    sureness = np.where((truth != MISSING) & (truth != answer), answers.max(axis=1), -1.0)
    surest = [int(position) for position in np.argsort(-sureness, kind="stable")[:_MOST_ERRORS] if sureness[position] >= 0]
    return [
        {
            "row": examples.rows[position],
            "text": examples.texts[position] if with_texts else None,
            "truth": classes[truth[position]],
            "answer": classes[answer[position]],
            "probability": float(answers[position].max()),
        }
        for position in surest
    ]
