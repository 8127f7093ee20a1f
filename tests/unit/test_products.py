"""training.network.products: linear layers by oneDNN where MKL is slower, the same up to float noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from training.data.tokens import Tokenizer
from training.fit_settings import FitSettings
from training.fitting.step import Fold, Objective, Step
from training.fitting.workers import OneWorker
from training.network import products
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import recompute_layers
from training.network.products import OneDnnLinear, compute_faster, is_onednn_faster, linear

HEADS = [{"name": "job", "classes": ["nurse", "driver"], "hidden_size": 4, "dropout": 0.0}]
TEXTS = [f"the {'nurse' if row % 2 else 'driver'} {'x ' * (row % 7)}" for row in range(24)]

pytestmark = pytest.mark.skipif(not products.has_product(), reason="this build of torch has no oneDNN, and training does without")


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let oneDNN compute however small a layer is; returns the shapes that it gets."""
    seen: list[tuple[int, ...]] = []
    product = products._product

    def counted(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(values.shape))
        return product(values, weight, bias)

    monkeypatch.setattr(products, "_product", counted)
    monkeypatch.setattr(products, "is_onednn_faster", lambda: True)
    monkeypatch.setattr(products, "_LEAST", 1)
    return seen


def layer_of(shape: tuple[int, ...], kind: type[nn.Linear]) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(shape[-1], 5)
    layer.__class__ = kind
    return layer


def gradients(
    kind: type[nn.Linear], *shape: int, use: Callable[[nn.Linear, torch.Tensor], torch.Tensor] | None = None
) -> list[torch.Tensor]:
    layer = layer_of(shape, kind)
    values = torch.randn(*shape, requires_grad=True)
    found = use(layer, values) if use else layer(values)
    found.backward(torch.randn(found.shape))
    grown = [one.grad for one in (values, *layer.parameters())]
    assert all(one is not None for one in grown)
    return [found.detach(), *(one for one in grown if one is not None)]


@pytest.mark.parametrize("shape", [(7, 3), (2, 4, 3), (2, 3, 4, 3)])
def test_values_and_gradients_are_torchs(count: list[tuple[int, ...]], shape: tuple[int, ...]) -> None:
    for one, other in zip(gradients(OneDnnLinear, *shape), gradients(nn.Linear, *shape), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    # Forward, and backward for values and weights.
    assert len(count) == 3


@pytest.mark.parametrize("least", [1, 10_000])
@pytest.mark.parametrize("is_biased", [True, False])
def test_weights_without_a_layer_are_computed_alike(
    count: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, is_biased: bool, least: int
) -> None:
    monkeypatch.setattr(products, "_LEAST", least)
    values = torch.randn(7, 3)
    layer = nn.Linear(3, 5, bias=is_biased)
    outer = torch.randn(7, 5)
    theirs = torch.autograd.grad((layer(values) * outer).sum(), list(layer.parameters()))
    ours = torch.autograd.grad((linear(values, layer.weight, layer.bias) * outer).sum(), list(layer.parameters()))
    torch.testing.assert_close(linear(values, layer.weight, layer.bias), layer(values), atol=1e-5, rtol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    # Forward twice, and backward for weights: values are no one's parameters.
    assert len(count) == (3 if least == 1 else 0)


def test_where_mkl_is_as_fast_weights_stay_torchs(count: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_onednn_faster", lambda: False)
    linear(torch.randn(7, 3), torch.randn(5, 3))
    assert not count


def test_no_rows_are_no_error(count: list[tuple[int, ...]]) -> None:
    assert layer_of((0, 3), OneDnnLinear)(torch.zeros(0, 3)).shape == (0, 5)


def test_what_does_not_stand_in_the_memory_row_by_row_is_read_as_it_is_meant(count: list[tuple[int, ...]]) -> None:
    # The gradient of a sum is one number, seen at every place.
    found, wanted = (gradients(kind, 3, 3, use=lambda layer, values: layer(values.t()).sum()) for kind in (OneDnnLinear, nn.Linear))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(count) == 3


def test_nothing_is_computed_for_what_is_frozen(count: list[tuple[int, ...]]) -> None:
    layer, values = layer_of((7, 3), OneDnnLinear), torch.randn(7, 3)
    layer.weight.requires_grad_(False)
    layer(values).sum().backward()
    assert count == [(7, 3)]
    assert layer.bias.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: layer.double()(torch.randn(7, 3, dtype=torch.float64)),
        lambda layer: layer.bfloat16()(torch.randn(7, 3, dtype=torch.bfloat16)),
        lambda layer: layer(torch.randn(3)),
        lambda layer: torch.autocast("cpu", dtype=torch.bfloat16)(layer)(torch.randn(7, 3)),
        lambda layer: torch.export.export(layer, (torch.randn(7, 3),)).module()(torch.randn(7, 3)),
    ],
    ids=["float64", "bfloat16", "one row", "autocast", "export"],
)
def test_whatever_is_no_float32_table_stays_torchs(count: list[tuple[int, ...]], compute: Callable[[nn.Linear], torch.Tensor]) -> None:
    assert compute(layer_of((7, 3), OneDnnLinear)).shape[-1] == 5
    assert count == []


def test_small_layers_stay_torchs(count: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", 7 * 3 * 5 + 1)
    layer = layer_of((7, 3), OneDnnLinear)
    layer(torch.randn(7, 3))
    assert count == []
    layer(torch.randn(8, 3))
    assert count == [(8, 3)]


@pytest.mark.parametrize("saves_memory", [False, True])
@pytest.mark.parametrize("method", ["fixed", "pcgrad"])
def test_a_step_is_the_same(make_encoder: Callable[..., Path], count: list[tuple[int, ...]], method: Any, saves_memory: bool) -> None:
    folder = make_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = Tokenizer(folder, 32)
    fold = Fold(TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id), {"job": np.arange(24) % 2})

    def moved(*, is_fast: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), "mean", HEADS)).train()
        if is_fast:
            compute_faster(model)
        if saves_memory:
            recompute_layers(model)
        step = Step(model, fold, FitSettings(balancing=method), Objective(loss_weights={"job": 1.0}), OneWorker())
        step.balancer.begin_epoch(1)
        step.take([np.arange(24)])
        return {name: tensor for name, tensor in step.state()[0].items() if name.startswith("exp_avg/")}

    wanted = moved(is_fast=False)
    assert count == []
    found = moved(is_fast=True)
    assert len(count) > 20
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    ("maker", "width", "is_faster"), [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)]
)
def test_it_is_for_amd_with_avx_512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str, width: str, is_faster: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {maker}\n")
    monkeypatch.setattr(products, "_CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert is_onednn_faster.__wrapped__() is is_faster
    monkeypatch.setattr(products, "_CPU_FACTS", tmp_path / "nothing")
    assert is_onednn_faster.__wrapped__() is False
    monkeypatch.setattr(products, "is_onednn_faster", lambda: is_faster)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    compute_faster(model)
    assert (type(model[0]) is OneDnnLinear) is is_faster
