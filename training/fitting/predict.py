"""What a model answers about texts.

It does not know how a model is trained.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from training.fitting.device import to_device
from training.fitting.workers import OneWorker, Workers
from training.network.inputs import Inputs, plan_batches
from training.network.model import TwoHeadBert

# Several times as many tokens as in training fit into a batch that keeps no activations for the backward pass.
_EVALUATION_FACTOR = 4


def predict_logits(model: TwoHeadBert, inputs: Inputs, batch_tokens: int, workers: Workers | None = None) -> dict[str, NDArray[np.float32]]:
    """Compute all heads' logits for all texts, without dropout.

    Args:
        model: Put into evaluation mode.
        inputs: The texts.
        batch_tokens: Of training; a batch here may be several times as large.
        workers: Who computes together; each gets all logits.

    Returns:
        Head → (texts, classes), float32, in the order of the inputs.
    """
    workers = workers or OneWorker()
    device = next(model.parameters()).device
    model.eval()
    texts = len(inputs.lengths)
    rows = {str(head["name"]): torch.zeros(texts, len(head["classes"])) for head in model.config.heads}
    batches = plan_batches(inputs.lengths, batch_tokens * _EVALUATION_FACTOR, batch_texts=512)
    for indices in batches[workers.rank :: workers.count]:
        with torch.inference_mode():
            logits = model(**to_device(inputs.batch(indices), device)).logits
        for head, values in logits.items():
            rows[head][torch.from_numpy(indices)] = values.float().cpu()
    # Every row is in one share and 0 in the others.
    workers.sum(list(rows.values()))
    return {head: table.numpy() for head, table in rows.items()}
