"""Out of memory: recognised, trained on once in smaller parts, and reported when that is not enough."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from training.data.tokens import Tokenizer
from training.fit_settings import FitSettings
from training.fitting.fit import Epoch, Fit, Fold, Objective
from training.fitting.memory import MemoryExhausted, epochs_within_memory, is_out_of_memory
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config

HEADS = [{"name": "job", "classes": ["nurse", "driver"], "hidden_size": 0, "dropout": 0.0}]
SETTINGS = FitSettings(epochs=3, patience=3, encoder_learning_rate=1e-3, head_learning_rate=1e-2, batch_tokens=64, batch_texts=8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_it_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_torch_raises_on_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


class Narrow(TwoHeadBert):
    """A model that runs out of memory above a number of tokens, counted when it trains."""

    limit = math.inf
    seen: list[int] = []

    def forward(self, input_ids: torch.Tensor | None = None, *others: Any, **named: Any) -> Any:
        if self.training and input_ids is not None:
            self.seen.append(input_ids.numel())
            if input_ids.numel() > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(input_ids, *others, **named)


@pytest.fixture
def prepare(make_encoder: Callable[..., Path]) -> Callable[..., Fit]:
    folder = make_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = Tokenizer(folder, 32)
    inputs = TokenInputs(
        tokenizer.encode([f"the {'nurse' if row % 2 else 'driver'} {'x ' * (row % 5)}" for row in range(32)]), tokenizer.pad_id
    )
    fold = Fold(inputs, {"job": np.arange(32) % 2})

    def make(factor: int = 1) -> Fit:
        torch.manual_seed(0)
        model = Narrow(make_config(AutoConfig.from_pretrained(str(folder)), "mean", HEADS))
        settings = SETTINGS.model_copy(update={"micro_batches": factor})
        return Fit(model, fold, fold, settings, Objective({"job": 1.0}), torch.device("cpu"))

    return make


def train(prepare: Callable[[int], Fit], folder: Path, *, limits: dict[int, float]) -> tuple[list[Epoch], list[int]]:
    """Train with a limit that comes into force after so many epochs."""
    factors: list[int] = []

    def make(factor: int) -> Fit:
        factors.append(factor)
        return prepare(factor)

    def restore(fit: Fit) -> None:
        if (folder / "fit.json").is_file():
            fit.restore(folder)

    found = []
    for fit, epoch in epochs_within_memory(make, restore):
        fit.save(folder)
        found.append(epoch)
        Narrow.limit = limits.get(epoch.number, Narrow.limit)
    return found, factors


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Narrow, "limit", math.inf)
    monkeypatch.setattr(Narrow, "seen", [])


def test_it_goes_on_from_the_last_epoch_in_half_the_tokens(prepare: Callable[..., Fit], tmp_path: Path) -> None:
    for name in ("roomy", "tight"):
        (tmp_path / name).mkdir()
    expected, _ = train(prepare, tmp_path / "roomy", limits={})
    found, factors = train(prepare, tmp_path / "tight", limits={1: max(Narrow.seen) * 0.6})
    assert factors == [1, 2]
    assert [epoch.number for epoch in found] == [1, 2, 3]
    # The same steps as without the limit: the effective batch is the same.
    assert [epoch.loss for epoch in found] == pytest.approx([epoch.loss for epoch in expected], abs=1e-5)


def test_a_second_time_it_gives_up(prepare: Callable[..., Fit], tmp_path: Path) -> None:
    with pytest.raises(MemoryExhausted, match="twice as many parts"):
        train(prepare, tmp_path, limits={2: 10})
    assert (tmp_path / "fit.json").is_file()


def test_other_errors_are_not_retried(prepare: Callable[..., Fit]) -> None:
    made = []

    def make(factor: int) -> Fit:
        made.append(factor)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(epochs_within_memory(make, lambda _: None))
    assert made == [1]


def test_memory_that_runs_out_while_building_counts_too(prepare: Callable[..., Fit]) -> None:
    made = []

    def make(factor: int) -> Fit:
        made.append(factor)
        if factor == 1:
            raise MemoryError
        return prepare(factor)

    assert [epoch.number for _, epoch in epochs_within_memory(make, lambda _: None)] == [1, 2, 3]
    assert made == [1, 2]
