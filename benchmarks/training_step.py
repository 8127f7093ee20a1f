"""A training step and a forward pass whose linear layers oneDNN computes, against torch's own library.

    python benchmarks/training_step.py --rounds 5

A random encoder of six layers, of MiniLM's width and of BERT-base's, two heads, batches of 16 texts of different lengths; one torch thread.
Rounds of both sides alternate on the same batches. Prints CPU seconds of a batch, their ratio, and how far the gradients are apart. Where
MKL is as fast (see `training/network/products.py`), a search takes neither way: the ratio says what it would.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from transformers import BertConfig

from training.network.model import TwoHeadBert, make_config
from training.network.packed import ATTENTION
from training.network.products import OneDnnLinear, has_product, is_onednn_faster

WIDTHS = {"MiniLM": (384, 1536), "BERT-base": (768, 3072)}
MEANS = (10, 60, 200)
BATCHES, TEXTS, MOST_TOKENS, VOCABULARY = 4, 16, 256, 5000
HEADS = [
    {"name": "category", "classes": [str(one) for one in range(22)], "hidden_size": 0, "dropout": 0.0},
    {"name": "education", "classes": [str(one) for one in range(6)], "hidden_size": 128, "dropout": 0.0},
]
Batch = dict[str, torch.Tensor]
Work = Callable[[TwoHeadBert, list[Batch]], None]


def make_model(width: int, inner: int) -> TwoHeadBert:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=6, num_attention_heads=12, vocab_size=VOCABULARY, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=ATTENTION,
    )  # fmt: skip
    return TwoHeadBert(make_config(config, "mean", HEADS))


def make_batches(mean: int) -> list[Batch]:
    chance, batches = np.random.default_rng(0), []
    for _ in range(BATCHES):
        lengths = np.clip(chance.geometric(1.0 / mean, TEXTS) + 2, 3, MOST_TOKENS)
        mask = torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))
        ids = torch.from_numpy(chance.integers(1, VOCABULARY, mask.shape)) * mask
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def step(model: TwoHeadBert, batches: list[Batch]) -> None:
    model.train().zero_grad()
    for batch in batches:
        torch.stack([logits.logsumexp(dim=1).sum() for logits in model(**batch).logits.values()]).sum().backward()


@torch.no_grad()
def forward(model: TwoHeadBert, batches: list[Batch]) -> None:
    model.eval()
    for batch in batches:
        model(**batch)


def let_compute(model: TwoHeadBert, kind: type[nn.Linear]) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = kind


def measure(model: TwoHeadBert, batches: list[Batch], work: Work, rounds: int) -> tuple[list[float], float]:
    """Return both sides' median CPU seconds of a batch, and how far all gradients are apart, as a share of their length."""
    spent: dict[type[nn.Linear], list[float]] = {nn.Linear: [], OneDnnLinear: []}
    gradients: dict[type[nn.Linear], list[torch.Tensor]] = {}
    for number in range(rounds + 1):
        for kind, seconds in spent.items():
            let_compute(model, kind)
            began = time.process_time()
            work(model, batches)
            # The first round warms up.
            seconds += [(time.process_time() - began) / BATCHES] if number else []
            gradients[kind] = [one.grad.flatten().clone() for one in model.parameters() if one.grad is not None]
    plain, fast = (torch.cat(side) for side in gradients.values())
    apart = float(torch.linalg.vector_norm(plain - fast) / torch.linalg.vector_norm(plain).clamp(min=1e-12))
    return [statistics.median(seconds) for seconds in spent.values()], apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not has_product():
        parser.error("this build of torch has no oneDNN")
    torch.set_num_threads(1)
    print(f"here a search takes {'oneDNN' if is_onednn_faster() else 'what torch takes'}; CPU s a batch, median of {options.rounds}")
    print(f"{'encoder':<10} {'tokens a text':>13} {'':>8} {'torch':>8} {'oneDNN':>8} {'ratio':>6} {'gradients apart':>16}")
    for name, sizes in WIDTHS.items():
        model = make_model(*sizes)
        for mean in MEANS:
            batches = make_batches(mean)
            tokens = sum(int(batch["attention_mask"].sum()) for batch in batches) / BATCHES / TEXTS
            for what, work in (("step", step), ("forward", forward)):
                (plain, fast), apart = measure(model, batches, work, options.rounds)
                figures = f"{tokens:>13.0f} {what:>8} {plain:>8.3f} {fast:>8.3f} {plain / fast:>6.2f}"
                print(f"{name:<10} {figures} {apart if what == 'step' else 0.0:>16.0e}", flush=True)


if __name__ == "__main__":
    main()
