"""The forward pass: texts without padding, in float32 and in whole numbers, against padded batches.

    python benchmarks/engines.py --shape base --rounds 5
    python benchmarks/engines.py --shape base --device cuda --texts 8192 --batch-texts 256

Two heads over a BERT of random weights; texts of log-normal length (median 50 tokens, sigma .8, at most 512), 16 a batch as they come. One
thread. All sides compute the same texts, one after the other in every round. Prints real tokens per CPU second of each side (on a GPU per
second of the clock; medians over rounds), its ratio to the padded one, how far its pooled vectors are from the padded ones in float32, and
the products that the device manages per second, measured in the same run: in float32 and in whole numbers on a core, in bf16 on a GPU.
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
Batch = dict[str, torch.Tensor]
Forward = Callable[[Batch], torch.Tensor]


def make_batches(texts: int, together: int, seed: int) -> tuple[list[Batch], int]:
    chance = np.random.default_rng(seed)
    lengths = np.clip(np.exp(chance.normal(np.log(50), 0.8, texts)), 4, 512).astype(int)
    rows = [chance.integers(1_000, 30_000, length).astype(np.int32) for length in lengths]
    padded = [pad(rows[first : first + together], 0) for first in range(0, texts, together)]
    return [{"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)} for ids, mask in padded], int(lengths.sum())


def make_sides(shape: str, batches: list[Batch], device: str) -> dict[str, Forward]:
    torch.manual_seed(0)
    packed = TwoHeadBert(make_config(BertConfig(**SHAPES[shape]), "mean", HEADS)).eval()
    padded, whole = (TwoHeadBert(copy.deepcopy(packed.config)).eval() for _ in range(2))
    for other in (padded, whole):
        other.load_state_dict(packed.state_dict())
    padded.encoder.set_attn_implementation("sdpa")
    if device == "cpu":
        quantise(encoder_layers(whole.encoder), lambda: whole(**batches[0]))
        return {"padded float32": pooled_by(padded), "packed float32": pooled_by(packed), "packed int8": pooled_by(whole)}
    padded.to(device), packed.to(device)
    exact = {"padded float32": pooled_by(padded), "packed float32": pooled_by(packed)}
    return exact | {"padded bfloat16": pooled_by(padded, torch.bfloat16), "packed bfloat16": pooled_by(packed, torch.bfloat16)}


def pooled_by(model: TwoHeadBert, dtype: torch.dtype | None = None) -> Forward:
    device = next(model.parameters()).device

    def forward(batch: Batch) -> torch.Tensor:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return model(**{name: values.to(device) for name, values in batch.items()}).pooled.float()

    return forward


def gflops(product: Callable[[], object], operations: float, clock: Callable[[], float]) -> float:
    """Return billions of operations a second, the best of some: nothing else should be measured here."""
    product()
    found = []
    for _ in range(5):
        begun = clock()
        for _ in range(5):
            product()
        found.append(5 * operations / (clock() - begun) / 1e9)
    return max(found)


def print_peaks(shape: str, device: str) -> float:
    """Print the products the device manages, and return the fastest of floating point, in Gop/s."""
    rows, inputs, outputs = 1_024, SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    if device == "cuda":
        rows = inputs = outputs = 8_192
        one, other = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
        peak = gflops(lambda: one @ other, 2.0 * rows**3, synchronised)
        print(f"{torch.cuda.get_device_name()}: products of {rows} x {rows} x {rows}: {peak:.0f} GFLOP/s in bf16", flush=True)
        return peak
    values, weights = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    exact = gflops(lambda: values @ weights.t(), 2.0 * rows * inputs * outputs, time.process_time)
    rounded = [torch.randint(-127, 128, one.shape, dtype=torch.int8) for one in (values, weights)]
    whole = gflops(lambda: torch._int_mm(rounded[0], rounded[1].t()), 2.0 * rows * inputs * outputs, time.process_time)
    print(f"products of {rows} x {inputs} x {outputs}: {exact:.0f} GFLOP/s in float32, {whole:.0f} Gop/s in int8", flush=True)
    return exact


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--batch-texts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches, tokens = make_batches(options.texts, options.batch_texts, options.seed)
    sides = make_sides(options.shape, batches, options.device)
    padding = 1 - tokens / sum(batch["input_ids"].numel() for batch in batches)
    print(f"{options.shape}: {options.texts} texts, {tokens} tokens, {padding:.0%} padding in batches of {options.batch_texts}")
    peak = print_peaks(options.shape, options.device)
    clock = synchronised if options.device == "cuda" else time.process_time
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    walls: dict[str, list[float]] = {name: [] for name in sides}
    pooled: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, forward in sides.items():
                # A GPU chooses its kernels when it sees a shape for the first time.
                forward(batches[0])
                wall, begun = time.perf_counter(), clock()
                pooled[name] = torch.cat([forward(batch) for batch in batches])
                speeds[name].append(tokens / (clock() - begun))
                walls[name].append(tokens / (time.perf_counter() - wall))
    width, inner = SHAPES[options.shape]["hidden_size"], SHAPES[options.shape]["intermediate_size"]
    operations = 2e-9 * SHAPES[options.shape]["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)
    columns = ("side", "tokens per s", "by the clock", "ratio", "Gop/s in linear layers", "of the peak", "largest difference")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in sides:
        speed, wall_speed = statistics.median(speeds[name]), statistics.median(walls[name])
        base = statistics.median(speeds[f"padded {name.split()[1]}" if options.device == "cuda" else "padded float32"])
        away = float((pooled[name] - pooled["padded float32"]).abs().max())
        told = [
            name,
            f"{speed:.0f}",
            f"{wall_speed:.0f}",
            f"{speed / base:.2f}",
            f"{speed * operations:.0f}",
            f"{speed * operations / peak:.0%}",
        ]
        print(f"| {' | '.join([*told, f'{away:.1e}'])} |")


if __name__ == "__main__":
    main()
