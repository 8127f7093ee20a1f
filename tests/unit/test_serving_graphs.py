"""Frames that hold any batch, and graphs that compute them."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from serving.engines.graphs import TOKENS, Frame
from serving.engines.torch_engine import TorchEngine
from tests.conftest import HEADS
from training.checkpoint import load_model
from training.network.model import TwoHeadBert, make_config
from training.network.packed import Packing

Rows = list[NDArray[np.int32]]


def texts(*lengths: int) -> Rows:
    chance = np.random.default_rng(0)
    return [chance.integers(5, 40, length).astype(np.int32) for length in lengths]


def test_frames_grow_by_a_half_and_a_third() -> None:
    assert list(TOKENS) == sorted(TOKENS)
    assert (TOKENS[0], TOKENS[-1]) == (64, 12_288)
    assert {round(larger / size, 2) for size, larger in itertools.pairwise(TOKENS)} == {1.5, 1.33}


@pytest.mark.parametrize("lengths", [(1,), (64,), (3, 20, 7), (1,) * 8, (30, 30), (16, 16, 16, 16)])
def test_what_is_laid_out_has_the_texts_first_and_covers_the_frame(lengths: tuple[int, ...]) -> None:
    frame, rows = Frame(64, 24), texts(*lengths)
    laid_out = frame.lay_out(rows, pad_id=0, first_position=2)
    ids, places, begins = np.split(laid_out, [64, 128])
    assert frame.holds(len(rows), sum(lengths))
    assert len(begins) == frame.ends + 1
    np.testing.assert_array_equal(ids, [*np.concatenate(rows), *[0] * (64 - sum(lengths))])
    np.testing.assert_array_equal(begins[: len(rows) + 1], np.cumsum([0, *lengths]))
    # A GPU reads what they say without a question.
    assert begins[-1] == 64
    assert (np.diff(begins) >= 0).all()
    assert (np.diff(begins[frame.texts :]) <= 24).all()
    for begin, end in itertools.pairwise(begins):
        np.testing.assert_array_equal(places[begin:end], 2 + np.arange(end - begin))


def test_too_many_texts_or_tokens_find_no_room() -> None:
    frame = Frame(64, 24)
    assert frame.holds(8, 64)
    assert not frame.holds(9, 9)
    assert not frame.holds(1, 65)


def test_texts_of_nothing_change_no_answer(tiny_checkpoint: Path) -> None:
    rows, frame = texts(3, 20, 7), Frame(64, 24)
    model = load_model(tiny_checkpoint)
    ids, _, begins = np.split(frame.lay_out(rows, 0, 0), [64, 128])
    lengths = tuple(int(length) for length in np.diff(begins) if length)
    with torch.inference_mode():
        framed = model(torch.from_numpy(ids.astype(np.int64))[None], packing=Packing(torch.arange(len(lengths)), lengths)).logits
    for head, logits in TorchEngine(load_model(tiny_checkpoint), 0).forward(rows).items():
        np.testing.assert_allclose(framed[head][: len(rows)], logits, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records kernels of a GPU")
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra", "roberta", "xlm-roberta"])
def test_a_recorded_pass_answers_as_one_that_is_not(model_type: str, make_encoder: Callable[..., Path]) -> None:
    torch.manual_seed(6)
    config = AutoConfig.from_pretrained(str(make_encoder(model_type, max_position_embeddings=300)))
    model = TwoHeadBert(make_config(config, "mean", HEADS)).eval()
    pad_id = int(config.pad_token_id or 0)
    recorded, plain = (TorchEngine(copy.deepcopy(model), pad_id, precision="float16") for _ in range(2))
    assert recorded.graphs is not None
    plain.graphs = None
    for lengths in [(1,), (5, 200, 3), (9,) * 40, (200,) * 61, (1,) * 300]:
        found, wanted = recorded.graphs.forward(rows := texts(*lengths)), plain.forward(rows)
        assert found is not None
        for head, logits in wanted.items():
            np.testing.assert_allclose(found[head], logits, atol=2e-3)
    assert recorded.graphs.forward(texts(*[200] * 62)) is None
