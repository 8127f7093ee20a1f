"""Whether a version still answers its golden texts as it did when it was made.

An upgrade of a library, or another machine, can change numbers without a word. It does not know versions or names.
"""

from pathlib import Path

import numpy as np

from training.checkpoint import library_versions, load_model, load_tokenizer
from training.data.tokens import make_token_table
from training.errors import CheckpointError
from training.fitting.predict import predict_logits
from training.golden import read_golden
from training.judging.metrics import probabilities
from training.manifest import Manifest, read_manifest
from training.network.inputs import TokenInputs

# Additions in another order move a probability by 1e-6.
MOST_SHIFT = 1e-4
_BATCH_TOKENS = 2_048


def check_golden_answers(folder: Path, where: str) -> int:
    """Compute a verified checkpoint's golden texts in float32, and compare with what is stored.

    Args:
        folder: Of the checkpoint.
        where: For the message.

    Returns:
        How many texts that were; 0 where it has none.

    Raises:
        CheckpointError: A calibrated probability is another one.
    """
    golden, manifest = read_golden(folder), read_manifest(folder)
    if golden is None:
        return 0
    table = make_token_table(golden.rows, [len(row) for row in golden.rows])
    inputs = TokenInputs(table, load_tokenizer(folder, manifest).pad_id)
    found = predict_logits(load_model(folder), inputs, _BATCH_TOKENS)
    for head in manifest.heads:
        if head.name not in golden.logits:
            raise CheckpointError(f"{where}: its golden texts have no answers of head {head.name!r}", "publish it again")
        ours, stored = (probabilities(logits[head.name], head.temperature) for logits in (found, golden.logits))
        shift = float(np.abs(ours - stored).max())
        if not shift <= MOST_SHIFT:
            raise CheckpointError(
                f"{where}: does not answer its golden texts as it did when it was made: a probability of head {head.name!r} is "
                f"{shift:.2g} away, but may be {MOST_SHIFT:g}",
                _reason(manifest),
            )
    return len(golden.rows)


def _reason(manifest: Manifest) -> str:
    here = library_versions()
    changed = [f"{name} {then} (here {here.get(name)})" for name, then in manifest.libraries.items() if here.get(name) != then]
    return f"it was made with {', '.join(changed)}" if changed else "its files are not of one model: publish it again"
