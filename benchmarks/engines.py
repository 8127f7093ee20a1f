"""The forward pass: texts without padding, in float32 and in whole numbers, against padded batches.

    python benchmarks/engines.py --shape base --rounds 5

Two heads over a BERT of random weights; texts of log-normal length (median 50 tokens, sigma .8, at most 512), 16 a batch as they come. One
thread. All sides compute the same texts, one after the other in every round. Prints real tokens per CPU second of each side (median over
rounds), its ratio to the padded one, how far its pooled vectors are from the padded ones, and the products that the core manages per second
in float32 and in whole numbers, measured in the same run.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import BertConfig

from serving.engines.int8 import quantise
from training.data.tokens import pad
from training.network.encoder import encoder_layers
from training.network.model import TwoHeadBert, make_config

SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
HEADS = [{"name": name, "classes": [str(number) for number in range(10)], "hidden_size": 0, "dropout": 0.1} for name in ("first", "second")]
BATCH_TEXTS = 16

Batch = dict[str, torch.Tensor]


def make_batches(texts: int, seed: int) -> tuple[list[Batch], int]:
    chance = np.random.default_rng(seed)
    lengths = np.clip(np.exp(chance.normal(np.log(50), 0.8, texts)), 4, 512).astype(int)
    rows = [chance.integers(1_000, 30_000, length).astype(np.int32) for length in lengths]
    padded = [pad(rows[first : first + BATCH_TEXTS], 0) for first in range(0, texts, BATCH_TEXTS)]
    return [{"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)} for ids, mask in padded], int(lengths.sum())


def make_sides(shape: str, batches: list[Batch]) -> dict[str, TwoHeadBert]:
    torch.manual_seed(0)
    packed = TwoHeadBert(make_config(BertConfig(**SHAPES[shape]), "mean", HEADS)).eval()
    padded, whole = (TwoHeadBert(copy.deepcopy(packed.config)).eval() for _ in range(2))
    for other in (padded, whole):
        other.load_state_dict(packed.state_dict())
    padded.encoder.set_attn_implementation("sdpa")
    quantise(encoder_layers(whole.encoder), lambda: whole(**batches[0]))
    return {"padded float32": padded, "packed float32": packed, "packed int8": whole}


def gflops(product: Callable[[], object], operations: float) -> float:
    """Return billions of operations a CPU second, the best of some: nothing else should be measured here."""
    product()
    found = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(5):
            product()
        found.append(5 * operations / (time.process_time() - begun) / 1e9)
    return max(found)


def print_peaks(shape: str) -> None:
    rows, inputs, outputs = 1_024, SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    values, weights = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    exact = gflops(lambda: values @ weights.t(), 2.0 * rows * inputs * outputs)
    rounded = [torch.randint(-127, 128, one.shape, dtype=torch.int8) for one in (values, weights)]
    whole = gflops(lambda: torch._int_mm(rounded[0], rounded[1].t()), 2.0 * rows * inputs * outputs)
    print(f"products of {rows} x {inputs} x {outputs}: {exact:.0f} GFLOP/s in float32, {whole:.0f} Gop/s in int8", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches, tokens = make_batches(options.texts, options.seed)
    sides = make_sides(options.shape, batches)
    padding = 1 - tokens / sum(batch["input_ids"].numel() for batch in batches)
    print(f"{options.shape}: {options.texts} texts, {tokens} tokens, {padding:.0%} padding in batches of {BATCH_TEXTS}")
    print_peaks(options.shape)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    walls: dict[str, list[float]] = {name: [] for name in sides}
    pooled: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, model in sides.items():
                wall, cpu = time.perf_counter(), time.process_time()
                pooled[name] = torch.cat([model(**batch).pooled for batch in batches])
                speeds[name].append(tokens / (time.process_time() - cpu))
                walls[name].append(tokens / (time.perf_counter() - wall))
    width, inner = SHAPES[options.shape]["hidden_size"], SHAPES[options.shape]["intermediate_size"]
    operations = 2e-9 * SHAPES[options.shape]["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)
    print("| side | tokens per CPU s | tokens per s | ratio | Gop/s in linear layers | largest difference |\n|---|---|---|---|---|---|")
    base = statistics.median(speeds["padded float32"])
    for name in sides:
        speed = statistics.median(speeds[name])
        away = float((pooled[name] - pooled["padded float32"]).abs().max())
        wall = statistics.median(walls[name])
        print(f"| {name} | {speed:.0f} | {wall:.0f} | {speed / base:.2f} | {speed * operations:.0f} | {away:.1e} |")


if __name__ == "__main__":
    main()
