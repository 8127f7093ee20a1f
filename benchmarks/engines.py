"""The forward pass: texts without padding, in float32 and in whole numbers, against padded batches.

    python benchmarks/engines.py --shape base --rounds 5
    python benchmarks/engines.py --shape base --device cuda --texts 8192 --batch-texts 256

Two heads over a BERT of random weights; texts of log-normal length (median 50 tokens, sigma .8, at most 512), 16 a batch as they come. One
thread. All sides compute the same texts, one after the other in every round. Prints real tokens per CPU second of each side (on a GPU per
second of the clock; medians over rounds), its ratio to the padded one, how far its logits are from the padded ones in float32, and
the products that the device manages per second, measured in the same run: in float32 and in whole numbers on a core, in bf16 on a GPU.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig

from serving.engines.engine import Logits
from serving.engines.torch_engine import TorchEngine, precisions
from training.data.tokens import pad
from training.network.model import TwoHeadBert, make_config

SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
HEADS = [{"name": name, "classes": [str(number) for number in range(10)], "hidden_size": 0, "dropout": 0.1} for name in ("first", "second")]
Rows = list[NDArray[np.int32]]
Forward = Callable[[Rows], NDArray[np.float32]]


def make_batches(texts: int, together: int, seed: int) -> list[Rows]:
    chance = np.random.default_rng(seed)
    lengths = np.clip(np.exp(chance.normal(np.log(50), 0.8, texts)), 4, 512).astype(int)
    rows = [chance.integers(1_000, 30_000, length).astype(np.int32) for length in lengths]
    return [rows[first : first + together] for first in range(0, texts, together)]


def make_sides(shape: str, batches: list[Rows], device: str) -> dict[str, Forward]:
    torch.manual_seed(0)
    model = TwoHeadBert(make_config(BertConfig(**SHAPES[shape]), "mean", HEADS)).eval()
    other = copy.deepcopy(model).to(device)
    other.encoder.set_attn_implementation("sdpa")
    sides = {"padded float32": padded(other)}
    if device == "cuda":
        sides["padded bfloat16"] = padded(other, torch.bfloat16)
    for precision in precisions():
        engine = TorchEngine(copy.deepcopy(model), 0, precision=precision, typical=batches[0])
        sides[f"here, {precision}"] = partial(flat, engine.forward)
    return sides


def padded(model: TwoHeadBert, dtype: torch.dtype | None = None) -> Forward:
    device = next(model.parameters()).device

    def forward(rows: Rows) -> NDArray[np.float32]:
        ids, mask = (torch.from_numpy(one).to(device) for one in pad(rows, 0))
        with torch.inference_mode(), torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return np.hstack([logits.float().cpu().numpy() for logits in model(ids, mask).logits.values()])

    return forward


def flat(forward: Callable[[Rows], Logits], rows: Rows) -> NDArray[np.float32]:
    return np.hstack(list(forward(rows).values()))


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
    batches = make_batches(options.texts, options.batch_texts, options.seed)
    tokens, places = sum(len(row) for batch in batches for row in batch), sum(len(batch) * max(map(len, batch)) for batch in batches)
    sides = make_sides(options.shape, batches, options.device)
    print(f"{options.shape}: {options.texts} texts, {tokens} tokens, {1 - tokens / places:.0%} padding in batches of {options.batch_texts}")
    peak = print_peaks(options.shape, options.device)
    clock = synchronised if options.device == "cuda" else time.process_time
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    walls: dict[str, list[float]] = {name: [] for name in sides}
    logits: dict[str, NDArray[np.float32]] = {}
    for _ in range(options.rounds):
        for name, forward in sides.items():
            # A GPU chooses its kernels when it sees a shape for the first time.
            forward(batches[0])
            wall, begun = time.perf_counter(), clock()
            logits[name] = np.vstack([forward(batch) for batch in batches])
            speeds[name].append(tokens / (clock() - begun))
            walls[name].append(tokens / (time.perf_counter() - wall))
    width, inner = SHAPES[options.shape]["hidden_size"], SHAPES[options.shape]["intermediate_size"]
    operations = 2e-9 * SHAPES[options.shape]["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)
    columns = ("side", "tokens per s", "by the clock", "ratio", "Gop/s in linear layers", "of the peak", "largest difference")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in sides:
        speed, wall_speed = statistics.median(speeds[name]), statistics.median(walls[name])
        is_half = options.device == "cuda" and not name.endswith("float32")
        base = statistics.median(speeds["padded bfloat16" if is_half else "padded float32"])
        away = float(np.abs(logits[name] - logits["padded float32"]).max())
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
