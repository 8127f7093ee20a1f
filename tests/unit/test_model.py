"""The model over every supported architecture: it loads, trains, pools, freezes and round-trips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from training.data.tokens import Tokenizer
from training.errors import EncoderError
from training.fit_settings import EncoderSettings
from training.network.encoder import SUPPORTED_TYPES, encoder_layers, find_encoder, load_encoder_weights
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import compute_prefix, freeze, remove_prefix, trainable_state

HEADS = [
    {"name": "category", "classes": ["a", "b", "c"], "hidden_size": 0, "dropout": 0.0},
    {"name": "type", "classes": ["x", "y"], "hidden_size": 5, "dropout": 0.0},
]
TEXTS = ["nurse", "the sales driver and the teacher", "school a b c d e f g h i j k l m n", "master"]


def loaded_model(folder: Path, pooling: str = "mean") -> tuple[TwoHeadBert, Tokenizer]:
    source = find_encoder(EncoderSettings(name=str(folder), pooling=pooling, max_tokens=32))
    torch.manual_seed(1)
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), source.pooling, HEADS))
    load_encoder_weights(model.encoder, source)
    return model.eval(), Tokenizer(folder, 32)


def all_logits(model: TwoHeadBert, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    batch = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id).batch(np.arange(len(TEXTS)))
    return model(**batch).logits


@pytest.mark.parametrize("model_type", SUPPORTED_TYPES)
def test_every_architecture_loads_its_weights_and_trains(model_type: str, make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(model_type)
    model, tokenizer = loaded_model(folder)
    reference = AutoModel.from_pretrained(str(folder)).eval()
    batch = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id).batch(np.arange(len(TEXTS)))
    with torch.no_grad():
        assert torch.equal(model.encoder(**batch).last_hidden_state, reference(**batch).last_hidden_state)
    sum(logits.square().sum() for logits in model.train()(**batch).logits.values()).backward()
    top = [parameter.grad for parameter in encoder_layers(model.encoder)[-1].parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in top if gradient is None or gradient.dim() > 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("depth", [0, 2])
def test_an_encoder_that_was_saved_in_half_precision_is_trained_in_float32(
    dtype: str, depth: int, make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_encoder("bert")
    AutoModel.from_pretrained(str(folder), dtype=getattr(torch, dtype)).save_pretrained(str(folder))
    assert AutoConfig.from_pretrained(str(folder)).dtype == getattr(torch, dtype)
    model, tokenizer = loaded_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    freeze(model, depth)
    inputs = compute_prefix(model, tokenizer.encode(TEXTS), tokenizer.pad_id, depth, batch_tokens=40)
    remove_prefix(model, depth)
    sum(logits.square().sum() for logits in model.train()(**inputs.batch(np.arange(len(TEXTS)))).logits.values()).backward()
    # What is saved of it is loaded so, too.
    model.save_pretrained(str(tmp_path / "saved"))
    again = TwoHeadBert.from_pretrained(str(tmp_path / "saved"))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("model_type", SUPPORTED_TYPES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_prefix_computed_once_changes_no_logit(model_type: str, depth: int, make_encoder: Callable[..., Path]) -> None:
    model, tokenizer = loaded_model(make_encoder(model_type))
    expected = all_logits(model, tokenizer)
    freeze(model, depth)
    inputs = compute_prefix(model, tokenizer.encode(TEXTS), tokenizer.pad_id, depth, batch_tokens=40)
    names = set(trainable_state(model))
    remove_prefix(model, depth)
    assert set(trainable_state(model)) == names
    for indices in (np.arange(4), np.array([2]), np.array([3, 1])):
        logits = model(**inputs.batch(indices)).logits
        for head in expected:
            torch.testing.assert_close(logits[head], expected[head][indices], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", SUPPORTED_TYPES)
def test_a_batch_answers_as_each_text_alone(model_type: str, make_encoder: Callable[..., Path]) -> None:
    model, tokenizer = loaded_model(make_encoder(model_type))
    inputs = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id)
    together = all_logits(model, tokenizer)
    for index in range(len(TEXTS)):
        alone = model(**inputs.batch(np.array([index]))).logits
        for head in alone:
            torch.testing.assert_close(alone[head][0], together[head][index], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_save_and_load_is_bit_equal(pooling: str, make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    model, tokenizer = loaded_model(make_encoder("bert"), pooling)
    model.save_pretrained(str(tmp_path / "saved"))
    expected = all_logits(model, tokenizer)
    for again in (TwoHeadBert.from_pretrained(str(tmp_path / "saved")), AutoModel.from_pretrained(str(tmp_path / "saved"))):
        logits = all_logits(again.eval(), tokenizer)
        assert all(torch.equal(logits[head], expected[head]) for head in expected)


def test_pooling_reads_what_it_says(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder("bert")
    for pooling, expect in {
        "cls": lambda output: output.last_hidden_state[:, 0],
        "mean": lambda output: output.last_hidden_state.mean(dim=1),
        "pooler": lambda output: output.pooler_output,
    }.items():
        model, tokenizer = loaded_model(folder, pooling)
        batch = TokenInputs(tokenizer.encode(TEXTS[:1]), tokenizer.pad_id).batch(np.arange(1))
        torch.testing.assert_close(model(**batch).pooled, expect(model.encoder(**batch)))


def test_heads_do_not_read_each_other(make_encoder: Callable[..., Path]) -> None:
    model, tokenizer = loaded_model(make_encoder("bert"))
    batch = TokenInputs(tokenizer.encode(TEXTS), tokenizer.pad_id).batch(np.arange(4))
    model(**batch).logits["category"].sum().backward()
    assert all(parameter.grad is None for parameter in model.heads[1].parameters())


def test_the_config_keeps_no_path_of_the_training_machine(make_encoder: Callable[..., Path]) -> None:
    model, _ = loaded_model(make_encoder("bert"))
    assert "encoder-bert" not in model.config.to_json_string()


def test_freezing_more_layers_than_there_are_is_refused(make_encoder: Callable[..., Path]) -> None:
    model, _ = loaded_model(make_encoder("bert"))
    with pytest.raises(EncoderError, match="frozen_layers is 4, but the encoder has 3 layers"):
        freeze(model, 4)
