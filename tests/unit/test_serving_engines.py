"""Engines answer what the saved model answers, each as precisely as it says."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from serving.engines.int8 import Int8Linear, is_exact, quantise
from serving.engines.kernels import compiled
from serving.engines.torch_engine import TorchEngine
from training.checkpoint import load_model, load_tokenizer
from training.data.tokens import pad
from training.manifest import read_manifest
from training.network.encoder import SUPPORTED_TYPES
from training.network.model import TwoHeadBert, make_config
from training.network.packed import PACKED_TYPES

TEXTS = ["nurse", "the sales driver and the teacher", "x " * 200, "school", "9 a b c d", "master " * 20]


# Sums in 16 bits overflow, and serving does not compute so there either.
whole_numbers = pytest.mark.skipif(not is_exact(), reason="this processor's products of whole numbers are not exact")


@whole_numbers
def test_a_rounded_layer_is_the_layer_up_to_half_a_step() -> None:
    torch.manual_seed(1)
    linear, values = nn.Linear(48, 33), torch.randn(5, 7, 48)
    found = Int8Linear(linear)(values)
    expected = linear(values)
    assert found.shape == expected.shape
    # Each factor is off by half a step at most.
    steps = (values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)) / 255 / 2
    weight_steps = linear.weight.abs().amax(1) / 127 / 2
    most = steps * linear.weight.abs().sum(1) + values.abs().sum(-1, keepdim=True) * weight_steps + 48 * steps * weight_steps
    assert ((found - expected).abs() <= most + 1e-5).all()
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(found, expected)


@whole_numbers
def test_whole_numbers_are_exact() -> None:
    """Values that are multiples of their scale already lose nothing."""
    linear = nn.Linear(16, 4)
    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (4, 16), generator=chance).float() * 0.5)
        linear.weight[:, 0] = 127 * 0.5
        values = torch.randint(-128, 128, (6, 16), generator=chance).float() + 77
        values[:, 3], values[:, 5] = -128 + 77, 127 + 77
        torch.testing.assert_close(Int8Linear(linear)(values), linear(values), atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 40, 600])
def test_a_token_is_rounded_the_same_in_any_company(rows: int) -> None:
    torch.manual_seed(3)
    layer, loud = Int8Linear(nn.Linear(24, 24, bias=False)), torch.randn(rows, 24) * 1000
    quiet = torch.randn(1, 24)
    assert torch.equal(layer(torch.cat([loud, quiet]))[-1:], layer(quiet))


def test_an_input_that_is_large_in_every_text_does_not_take_all_the_steps() -> None:
    torch.manual_seed(4)
    linear, values = nn.Linear(32, 20), torch.randn(50, 32)
    values[:, 7] *= 200
    expected = linear(values).detach()
    plain, moved = (Int8Linear(linear, largest) for largest in (None, values.abs().amax(dim=0)))
    errors = [float((layer(values) - expected).norm() / expected.norm()) for layer in (plain, moved)]
    # Against what the other inputs contribute the plain one is mostly noise.
    assert errors[1] < errors[0] / 2


def test_nothing_is_nothing() -> None:
    layer = Int8Linear(nn.Linear(8, 3))
    assert torch.equal(layer(torch.zeros(2, 8)), layer.bias.expand(2, 3))


def test_every_linear_layer_inside_is_replaced_and_nothing_else() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 4)]))
    values = torch.randn(3, 4)
    expected = inner[0](values)
    quantise(inner, lambda: inner[0](values))
    torch.testing.assert_close(inner[0](values), expected, atol=0.02, rtol=0.02)
    # What read nothing keeps its inputs as they are.
    assert (bool((inner[0].shrink == 1).all()), bool((inner[1][1].shrink == 1).all())) == (False, True)
    assert [type(module) for module in inner.modules() if not list(module.children())] == [Int8Linear, nn.LayerNorm, Int8Linear]


@whole_numbers
def test_whole_numbers_answer_nearly_as_float32_does(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint, read_manifest(tiny_checkpoint))
    table = tokenizer.encode(TEXTS)
    rows = [table[index] for index in range(len(TEXTS))]
    exact, rounded = (TorchEngine(load_model(tiny_checkpoint), tokenizer.pad_id, precision=one) for one in ("float32", "int8"))
    assert (exact.dtype, rounded.dtype, rounded.pads) == ("float32", "int8", False)
    for head, logits in exact.forward(rows).items():
        found = rounded.forward(rows)[head]
        assert np.abs(found - logits).max() < 0.1 * np.abs(logits).max()
        assert not np.array_equal(found, logits)
        for index, row in enumerate(rows):
            np.testing.assert_allclose(rounded.forward([row])[head][0], found[index], atol=0.02 * np.abs(logits).max())


@pytest.mark.parametrize("model_type", SUPPORTED_TYPES)
def test_every_encoder_answers_what_its_saved_model_does(model_type: str, make_encoder: Callable[..., Path]) -> None:
    torch.manual_seed(6)
    config = AutoConfig.from_pretrained(str(make_encoder(model_type)))
    heads = [{"name": "job", "classes": ["a", "b", "c"], "hidden_size": 4, "dropout": 0.1}]
    model = TwoHeadBert(make_config(config, "mean", heads)).eval()
    chance = np.random.default_rng(7)
    rows = [chance.integers(5, config.vocab_size, length).astype(np.int32) for length in (9, 2, 14, 9, 1)]
    pad_id = int(config.pad_token_id or 0)
    with torch.inference_mode():
        expected = np.concatenate([model(torch.from_numpy(row[None].astype(np.int64))).logits["job"].numpy() for row in rows])
    engine = TorchEngine(copy.deepcopy(model), pad_id)
    np.testing.assert_allclose(engine.forward(rows)["job"], expected, atol=2e-6, rtol=1e-5)
    assert engine.pads == (model_type not in PACKED_TYPES)


def test_attention_heads_that_the_kernels_know_answer_alike(make_encoder: Callable[..., Path]) -> None:
    if compiled() is None:
        pytest.skip("this machine has no C compiler, and serving does without the kernels there")
    config = AutoConfig.from_pretrained(str(make_encoder("bert")))
    config.hidden_size = 32
    torch.manual_seed(8)
    model = TwoHeadBert(make_config(config, "mean", [{"name": "job", "classes": ["a", "b"], "hidden_size": 0, "dropout": 0.1}])).eval()
    rows = [np.arange(5, 5 + length, dtype=np.int32) for length in (9, 2, 14, 20)]
    engine = TorchEngine(copy.deepcopy(model), 0)
    found = engine.forward(rows)["job"]
    assert engine._attend is not None
    ids, mask = pad(rows, 0)
    model.encoder.set_attn_implementation("sdpa")
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits["job"].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


def test_coarse_encoders_answer_nearly_alike(tiny_checkpoint: Path) -> None:
    rows = [np.arange(5, 5 + length, dtype=np.int32) for length in (9, 2, 14)]
    exact, coarse = (TorchEngine(load_model(tiny_checkpoint), 0, precision=one) for one in ("float32", "bfloat16"))
    for head, logits in exact.forward(rows).items():
        found = coarse.forward(rows)[head]
        assert found.dtype == np.float32
        assert 0 < np.abs(found - logits).max() < 0.05 * np.abs(logits).max()


def test_an_engine_of_one_thread_is_measured_by_that_thread(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engines.torch_engine.time", SimpleNamespace(thread_time=lambda: 7.0, perf_counter=lambda: 9.0))
    threads = torch.get_num_threads()
    alone, together = (TorchEngine(load_model(tiny_checkpoint), 0, threads=number) for number in (1, 2))
    torch.set_num_threads(threads)
    assert (alone.clock(), together.clock()) == ((7.0 if alone.device == "cpu" else 9.0), 9.0)
