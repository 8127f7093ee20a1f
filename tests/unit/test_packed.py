"""Without padding every answer and every gradient is what padding gives."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from training.data.tokens import make_token_table
from training.network.encoder import SUPPORTED_TYPES, encoder_layers
from training.network.inputs import Batch, TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.packed import ATTENTION, PACKED_TYPES, pack
from training.network.prefix import prefix_rows

HEADS = [
    {"name": "category", "classes": ["a", "b", "c"], "hidden_size": 0, "dropout": 0.0},
    {"name": "type", "classes": ["x", "y"], "hidden_size": 5, "dropout": 0.0},
]
LENGTHS = (7, 3, 12, 3, 1, 7, 7)


def make_model(folder: Path, pooling: str, **changes: object) -> TwoHeadBert:
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(str(folder))
    for name, value in changes.items():
        setattr(config, name, value)
    return TwoHeadBert(make_config(config, pooling, HEADS)).eval()


def make_inputs(model: TwoHeadBert, lengths: tuple[int, ...] = LENGTHS) -> TokenInputs:
    chance = np.random.default_rng(5)
    vocabulary, pad_id = model.config.encoder.vocab_size, int(model.config.encoder.pad_token_id or 0)
    allowed = [number for number in range(vocabulary) if number != pad_id]
    return TokenInputs(make_token_table([list(chance.choice(allowed, length)) for length in lengths], list(lengths)), pad_id)


def make_batch(model: TwoHeadBert, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    return make_inputs(model, lengths).batch(np.arange(len(lengths)))


def padded(model: TwoHeadBert) -> TwoHeadBert:
    """The oracle: transformers' own attention, over padded texts."""
    other = TwoHeadBert(copy.deepcopy(model.config)).eval()
    other.load_state_dict(model.state_dict())
    other.encoder.set_attn_implementation("sdpa")
    assert model.packs
    assert not other.packs
    return other


# Two of them have no pooler.
POOLINGS = {name: ("mean", "cls") if name in ("distilbert", "electra") else ("mean", "cls", "pooler") for name in PACKED_TYPES}


@pytest.mark.parametrize(("model_type", "pooling"), [(name, pooling) for name in PACKED_TYPES for pooling in POOLINGS[name]])
def test_answers_and_gradients_are_those_of_padded_texts(model_type: str, pooling: str, make_encoder: Callable[..., Path]) -> None:
    model = make_model(make_encoder(model_type), pooling)
    other, batch = padded(model), make_batch(model)
    sides = []
    for one in (model, other):
        output = one(**batch)
        sum((logits * torch.arange(1.0, logits.numel() + 1).view_as(logits)).sum() for logits in output.logits.values()).backward()
        sides.append((output, {name: parameter.grad for name, parameter in one.named_parameters() if parameter.grad is not None}))
    (ours, own), (theirs, expected) = sides
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-6, rtol=1e-5)
    for head, logits in theirs.logits.items():
        torch.testing.assert_close(ours.logits[head], logits, atol=1e-6, rtol=1e-5)
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_a_text_is_answered_the_same_in_any_company(model_type: str, make_encoder: Callable[..., Path]) -> None:
    model = make_model(make_encoder(model_type), "mean")
    inputs = make_inputs(model)
    with torch.no_grad():
        together = model(**inputs.batch(np.arange(len(LENGTHS)))).pooled
        for index in range(len(LENGTHS)):
            torch.testing.assert_close(model(**inputs.batch(np.array([index]))).pooled[0], together[index], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_a_text_that_names_the_padding_token_keeps_the_positions_it_was_trained_with(
    model_type: str, make_encoder: Callable[..., Path]
) -> None:
    model = make_model(make_encoder(model_type), "mean")
    batch = make_batch(model)
    pad_id = int(model.config.encoder.pad_token_id)
    batch["input_ids"][2, [3, 7]] = pad_id
    batch["input_ids"][0, 6] = pad_id
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).pooled, padded(model)(**batch).pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_what_lower_layers_say_is_what_they_say_of_padded_texts(model_type: str, make_encoder: Callable[..., Path]) -> None:
    model = make_model(make_encoder(model_type), "mean")
    other, inputs = padded(model), make_inputs(model)
    depths = list(range(1, len(encoder_layers(model.encoder)) + 1))
    ours, theirs = (prefix_rows(one, inputs.table, inputs.pad_id, depths) for one in (model, other))
    for depth in depths:
        torch.testing.assert_close(ours[depth], theirs[depth], atol=1e-6, rtol=1e-5)
    # Trained on from there.
    hidden = torch.nn.utils.rnn.pad_sequence(list(ours[1].split(list(LENGTHS))), batch_first=True)
    mask = make_batch(model)["attention_mask"]
    packing = pack(mask)
    assert packing is not None
    for one, back in zip(packing.split(packing.stream(hidden)), ours[1].split(list(LENGTHS)), strict=True):
        assert torch.equal(one, back)


def test_dropout_falls_on_attention_too(make_encoder: Callable[..., Path]) -> None:
    """All other dropout is off: what differs between two passes is attention's own."""
    model = make_model(make_encoder("bert"), "mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    batch = make_batch(model)
    model.train()
    torch.manual_seed(1)
    first, second = model(**batch).pooled, model(**batch).pooled
    torch.manual_seed(1)
    assert torch.equal(model(**batch).pooled, first)
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(model(**batch).pooled, model(**batch).pooled)


@pytest.mark.parametrize("place", ["before", "between", "everywhere"])
def test_padding_that_is_not_behind_a_text_is_computed_as_it_stands(place: str, make_encoder: Callable[..., Path]) -> None:
    model = make_model(make_encoder("bert"), "mean")
    batch = make_batch(model)
    mask = batch["attention_mask"]
    mask[0, {"before": slice(0, 2), "between": slice(3, 5), "everywhere": slice(None)}[place]] = 0
    assert pack(mask) is None
    with torch.no_grad():
        found, expected = model(**batch).pooled, padded(model)(**batch).pooled
    assert torch.equal(found, expected)


def test_a_mask_may_be_of_any_type(make_encoder: Callable[..., Path]) -> None:
    model = make_model(make_encoder("bert"), "mean")
    batch = make_batch(model)
    with torch.no_grad():
        expected = model(**batch).pooled
        for kind in (torch.float32, torch.bool, torch.int32):
            assert torch.equal(model(batch["input_ids"], batch["attention_mask"].to(kind)).pooled, expected)


# Tracing is on its way out, and warns of every length it takes for a constant.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_who_follows_every_step_gets_it_padded(make_encoder: Callable[..., Path]) -> None:
    # A trace takes weights for constants.
    model = make_model(make_encoder("bert"), "mean").requires_grad_(False)
    # Of the same shape, with other lengths.
    batch, other = make_batch(model), make_batch(model, LENGTHS[::-1])
    inputs = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        traced = torch.jit.trace(lambda ids, mask: model(ids, mask).pooled, inputs, check_trace=False)
        found = traced(other["input_ids"], other["attention_mask"])
        torch.testing.assert_close(found, model(**other).pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", sorted(set(SUPPORTED_TYPES) - set(PACKED_TYPES)))
def test_an_encoder_that_cannot_is_padded(model_type: str, make_encoder: Callable[..., Path]) -> None:
    assert not make_model(make_encoder(model_type), "mean").packs


def test_nothing_of_it_is_saved(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model(make_encoder("bert"), "mean")
    model.save_pretrained(tmp_path / "saved")
    assert f'"{ATTENTION}"' not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    again = TwoHeadBert.from_pretrained(tmp_path / "saved")
    assert again.packs
    batch = make_batch(model)
    with torch.no_grad():
        assert torch.equal(again(**batch).pooled, model(**batch).pooled)
