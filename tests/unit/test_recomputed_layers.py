"""Layers that recompute: the same gradients from less memory, whatever is frozen and wherever its activations come from."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from training.data.tokens import Tokenizer
from training.network.encoder import SUPPORTED_TYPES, encoder_layers
from training.network.inputs import Inputs, TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import compute_prefix, freeze, recompute_layers, remove_prefix, rest_frozen

HEADS = [{"name": "job", "classes": ["nurse", "driver"], "hidden_size": 0, "dropout": 0.1}]
TEXTS = [f"the nurse {'x ' * count}" for count in (1, 5, 9, 20)]

Made = tuple[TwoHeadBert, Inputs]


def make(folder: Path, depth: int, *, is_cached: bool) -> Made:
    torch.manual_seed(1)
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), "mean", HEADS))
    tokenizer = Tokenizer(folder, 32)
    inputs: Inputs = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id)
    freeze(model, depth)
    if is_cached:
        inputs = compute_prefix(model, tokenizer.encode(TEXTS), tokenizer.pad_id, depth)
        remove_prefix(model, depth)
    model.train()
    rest_frozen(model)
    return model, inputs


def backward(model: TwoHeadBert, inputs: Inputs) -> tuple[dict[str, torch.Tensor], list[int], torch.Tensor]:
    """Return gradients, how often each layer was computed, and the random numbers that follow."""
    computed: Counter[int] = Counter()
    for number, layer in enumerate(encoder_layers(model.encoder)):
        # Of the first norm: recomputing ends as soon as everything kept is there again, and so before the last one ends.
        norms = [one for one in layer.modules() if isinstance(one, nn.LayerNorm)]
        for norm in norms[:1]:
            norm.register_forward_hook(lambda *_, number=number: computed.update([number]))
    torch.manual_seed(3)
    model(**inputs.batch(np.arange(len(TEXTS)))).logits["job"].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return gradients, [computed[number] for number in range(3)], torch.rand(3)


@pytest.mark.parametrize("model_type", SUPPORTED_TYPES)
@pytest.mark.parametrize(
    ("depth", "is_cached", "plain", "recomputed"),
    [(0, False, [1, 1, 1], [2, 2, 2]), (2, False, [1, 1, 1], [1, 1, 2]), (2, True, [0, 0, 1], [0, 0, 2]), (3, True, [0] * 3, [0] * 3)],
)
def test_what_trains_is_computed_twice_and_has_the_same_gradients(
    make_encoder: Callable[..., Path], model_type: str, depth: int, is_cached: bool, plain: list[int], recomputed: list[int]
) -> None:
    # With the encoder's own dropout: what it drew is drawn again, and the next step draws what it would have.
    folder = make_encoder(model_type)
    expected, count, follows = backward(*make(folder, depth, is_cached=is_cached))
    assert count == plain
    model, inputs = make(folder, depth, is_cached=is_cached)
    names = list(model.state_dict())
    for _ in range(2):
        # Twice is once.
        recompute_layers(model)
    assert list(model.state_dict()) == names
    found, count, also_follows = backward(model, inputs)
    assert count == recomputed
    assert torch.equal(follows, also_follows)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def kept_bytes(model: TwoHeadBert, inputs: Inputs) -> int:
    """Return the size of what a forward pass keeps for the backward pass, parameters left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs.batch(np.arange(len(TEXTS))))
    return sum(kept.values())


@pytest.mark.parametrize(("depth", "is_cached"), [(0, False), (2, False), (2, True)])
def test_a_forward_pass_keeps_less(make_encoder: Callable[..., Path], depth: int, is_cached: bool) -> None:
    folder = make_encoder("bert")
    plain = kept_bytes(*make(folder, depth, is_cached=is_cached))
    model, inputs = make(folder, depth, is_cached=is_cached)
    recompute_layers(model)
    assert kept_bytes(model, inputs) < plain / 2


def test_frozen_layers_have_no_gradient_to_keep_anything_for(make_encoder: Callable[..., Path]) -> None:
    model, inputs = make(make_encoder("bert"), 2, is_cached=False)
    recompute_layers(model)
    seen: list[bool] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].requires_grad)

    encoder_layers(model.encoder)[2].register_forward_pre_hook(note)
    model(**inputs.batch(np.arange(len(TEXTS))))
    assert seen == [False]


def test_nothing_is_recomputed_where_nothing_trains(make_encoder: Callable[..., Path]) -> None:
    model, inputs = make(make_encoder("bert"), 0, is_cached=False)
    expected = model.eval()(**inputs.batch(np.arange(len(TEXTS)))).logits["job"]
    recompute_layers(model)
    found = model(**inputs.batch(np.arange(len(TEXTS)))).logits["job"]
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(model(**inputs.batch(np.arange(len(TEXTS)))).logits["job"], expected)
