"""Small batches on a GPU: forward passes recorded as CUDA graphs against the same ones started kernel by kernel.

    python benchmarks/recorded.py --shape base --rounds 5

Two heads over a BERT of random weights; texts of log-normal length (median 50 tokens, sigma .8, at most 512). Both sides are one engine
with the same weights and compute the same batches, one after the other in every round. Prints, by texts in a batch: milliseconds from token
ids to logits on the host, medians over all batches and rounds, their ratio, and how far the logits are apart; and, once, how long recording
took and what memory it holds.
"""

import argparse
import copy
import statistics
import time

import numpy as np
import torch
from engines import HEADS, SHAPES, flat, make_batches, synchronised
from transformers import BertConfig

from serving.engines.torch_engine import TorchEngine
from training.network.model import TwoHeadBert, make_config

TOGETHER = (1, 2, 8, 32, 128, 256)
BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--precision", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = TwoHeadBert(make_config(BertConfig(**SHAPES[options.shape]), "mean", HEADS)).eval()
    one_by_one = TorchEngine(copy.deepcopy(model), 0, precision=options.precision)
    one_by_one.graphs = None
    before, begun = torch.cuda.memory_reserved(), synchronised()
    recorded = TorchEngine(model, 0, precision=options.precision)
    took, held = synchronised() - begun, torch.cuda.memory_reserved() - before
    print(f"{options.shape} on {torch.cuda.get_device_name()}: made in {took:.1f} s, {held / 1e6:.0f} MB with weights")
    columns = ("texts a batch", "tokens", "one by one, ms", "recorded, ms", "ratio", "largest difference")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for together in TOGETHER:
        batches = make_batches(together * BATCHES, together, options.seed)
        times: dict[TorchEngine, list[float]] = {one_by_one: [], recorded: []}
        away = 0.0
        for _ in range(options.rounds + 1):
            for rows in batches:
                logits = []
                for engine, taken in times.items():
                    start = time.perf_counter()
                    logits.append(flat(engine.forward, rows))
                    taken.append(time.perf_counter() - start)
                away = max(away, float(np.abs(logits[0] - logits[1]).max()))
        # The first round warms up.
        plain, fast = (1e3 * statistics.median(taken[BATCHES:]) for taken in times.values())
        tokens = statistics.median(sum(map(len, rows)) for rows in batches)
        print(f"| {together} | {tokens:.0f} | {plain:.2f} | {fast:.2f} | {plain / fast:.2f} | {away:.1e} |", flush=True)


if __name__ == "__main__":
    main()
