"""First looks: what word pieces say by themselves, then heads trained on a sample of the texts, for scores while all else is to be encoded.

Encoding a large table takes long, and a score that is far from what was expected should be seen before. It does not know Ray.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.tokens import TokenTable
from training.judging.calibration import measured
from training.judging.metrics import head_scores, majority_class, selection_score
from training.network.encoder import encoder_layers
from training.network.inputs import PooledInputs
from training.network.model import Head, TwoHeadBert
from training.network.prefix import prefix_rows
from training.search.trials.assignment import Assignment
from training.search.trials.heads_alone import default_head
from training.search.trials.reading import piece_scores, read

# Seconds of work for a core.
_TRAINING_TOKENS, _VALIDATION_TOKENS = 16_384, 65_536


@dataclass(frozen=True)
class Look:
    """What a sample says.

    Attributes:
        texts: Training texts that were learned from.
        validation_texts: Validation texts that were answered.
        heads: Head → score on them.
        score: The selection score.
    """

    texts: int
    validation_texts: int
    heads: dict[str, float]
    score: float

    @property
    def shown(self) -> str:
        """The heads' scores, for people."""
        return ", ".join(f"{head} {score:.3f}" for head, score in self.heads.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def look_at_words(assignment: Assignment) -> Look | None:
    """Score what word pieces say by themselves, without the encoder; nothing where they speak for some heads only.

    Args:
        assignment: What all trials share.
    """
    figures = words_figures(assignment)
    return None if figures is None else _look(assignment, len(assignment.tokens["training"]), len(assignment.tokens["validation"]), figures)


def words_figures(assignment: Assignment) -> dict[str, dict[str, Any]] | None:
    """Measure what word pieces say by themselves of the validation texts, by head; nothing where they speak for some heads only.

    Args:
        assignment: What all trials share.
    """
    if assignment.worded.keys() != assignment.classes.keys() or not len(assignment.tokens["validation"]):
        return None
    every = np.arange(len(assignment.tokens["validation"]))
    return {head: _figures(assignment, head, scores, every) for head, scores in words_say(assignment).items()}


def look(assignment: Assignment, model: TwoHeadBert) -> Look:
    """Train the default's heads on the frozen encoder's vectors of a sample, and score them on validation texts.

    Args:
        assignment: What all trials share.
        model: With its encoder whole.
    """
    settings, depth = assignment.settings, len(encoder_layers(model.encoder))
    sample = _sample(assignment.tokens["training"], _TRAINING_TOKENS, settings.fit.seed)
    held_out = _sample(assignment.tokens["validation"], _VALIDATION_TOKENS, settings.fit.seed)
    learned = _pooled(assignment, model, "training", sample, depth)
    answered = _pooled(assignment, model, "validation", held_out, depth)
    said, figures = words_say(assignment), {}
    for head in assignment.classes:
        logits = _answers(default_head(assignment, head, learned, sample), answered)
        figures[head] = _figures(assignment, head, logits + said[head][held_out] if head in said else logits, held_out)
    return _look(assignment, len(sample), len(held_out), figures)


def words_say(assignment: Assignment) -> dict[str, NDArray[np.float32]]:
    """Return what word pieces say of the validation texts, by head, (texts, classes).

    Args:
        assignment: What all trials share.
    """
    heads = tuple(assignment.worded)
    if not heads:
        return {}
    ends = np.cumsum([len(assignment.classes[head]) for head in heads])[:-1]
    return dict(zip(heads, np.split(piece_scores(assignment, heads, "validation").numpy(), ends, axis=1), strict=True))


def _figures(assignment: Assignment, head: str, logits: NDArray[np.float32], chosen: NDArray[np.int64]) -> dict[str, Any]:
    """Measure answers about some validation texts."""
    majority = majority_class(assignment.labels["training"][head], len(assignment.classes[head]))
    truth, is_ordered = assignment.labels["validation"][head][chosen], assignment.settings.heads[head].ordered
    metric = assignment.settings.tuning.score_metrics.get(head, "macro_f1")
    return measured(truth, logits, majority, metric, is_ordered=is_ordered).to_dict()


def _look(assignment: Assignment, texts: int, validation_texts: int, figures: Mapping[str, Mapping[str, Any]]) -> Look:
    tuning = assignment.settings.tuning
    scores = head_scores(figures, tuning.score_metrics)
    return Look(texts, validation_texts, scores, selection_score(scores, tuning.score_weights))


@torch.no_grad()
def _answers(head: Head, pooled: torch.Tensor) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = head.eval()(pooled).float().numpy()
    return logits


def _sample(table: TokenTable, most_tokens: int, seed: int) -> NDArray[np.int64]:
    """Draw texts until they have so many tokens; all of them where they have fewer."""
    order = np.random.default_rng(seed).permutation(len(table))
    count = int(np.searchsorted(np.cumsum(table.lengths[order]), most_tokens, side="right"))
    return np.sort(order[: max(count, 1)])


def _pooled(assignment: Assignment, model: TwoHeadBert, split: str, chosen: NDArray[np.int64], depth: int) -> torch.Tensor:
    """Return (texts, width): from what is kept where all texts are wanted, else computed."""
    if len(chosen) == len(assignment.tokens[split]):
        kept = read(assignment, model, depth, (split,), below=assignment.first_depth(depth))[split]
        if isinstance(kept, PooledInputs):
            return kept.pooled.float()
    return prefix_rows(model, assignment.tokens[split].take(chosen), assignment.pad_id, [depth])[depth]
