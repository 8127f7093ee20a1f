"""The first look: heads trained on a sample of the texts, for a first score while everything else is still to be encoded.

Encoding a large table takes long, and a score that is far from what was expected should be seen before. It does not know Ray.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.tokens import TokenTable
from training.judging.metrics import head_scores, majority_class, measure_head, probabilities, selection_score
from training.network.encoder import encoder_layers
from training.network.inputs import PooledInputs
from training.network.model import Head, TwoHeadBert
from training.network.prefix import prefix_rows
from training.search.trials.assignment import Assignment
from training.search.trials.heads_alone import default_head
from training.search.trials.reading import read

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

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def look(assignment: Assignment, model: TwoHeadBert) -> Look:
    """Train linear heads on the frozen encoder's vectors of a sample, and score them on validation texts.

    Args:
        assignment: What all trials share.
        model: With its encoder whole.
    """
    settings, depth = assignment.settings, len(encoder_layers(model.encoder))
    sample = _sample(assignment.tokens["training"], _TRAINING_TOKENS, settings.fit.seed)
    held_out = _sample(assignment.tokens["validation"], _VALIDATION_TOKENS, settings.fit.seed)
    learned = _pooled(assignment, model, "training", sample, depth)
    answered = _pooled(assignment, model, "validation", held_out, depth)
    figures = {}
    for head, classes in assignment.classes.items():
        module = default_head(assignment, head, learned, sample)
        truth, labels = (assignment.labels[split][head][chosen] for split, chosen in (("validation", held_out), ("training", sample)))
        logits = _answers(module, answered)
        measured = measure_head(truth, probabilities(logits), majority_class(labels, len(classes)), is_ordered=settings.heads[head].ordered)
        figures[head] = measured.to_dict()
    scores = head_scores(figures, settings.tuning.score_metrics)
    return Look(len(sample), len(held_out), scores, selection_score(scores, settings.tuning.score_weights))


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
