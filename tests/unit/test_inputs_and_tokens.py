"""Token tables, truncation and batches of similar length."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import tokens
from training.data.tokens import SavedTokenizer, Tokenizer, load_saved, make_token_table, pad
from training.errors import EncoderError
from training.network.inputs import TokenInputs, plan_batches


def test_a_long_text_is_cut_and_keeps_its_special_tokens(make_encoder: Callable[..., Path]) -> None:
    tokenizer = Tokenizer(make_encoder(), max_tokens=6)
    table = tokenizer.encode(["nurse", "a b c d e f g h"])
    assert table.lengths.tolist() == [3, 6]
    assert table.full_lengths.tolist() == [3, 10]
    assert table.truncated.tolist() == [False, True]
    assert (table[1][0], table[1][-1]) == (table[0][0], table[0][-1])
    assert tokenizer.count(["a b c d e f g h"]) == [10]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_ids_are_those_of_transformers(model_type: str, side: str, saved: bool, make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_encoder(model_type)
    theirs = AutoTokenizer.from_pretrained(str(folder), truncation_side=side)
    # As MiniLM's file does, which is made for sentences of 128 tokens.
    theirs.backend_tokenizer.enable_truncation(4)
    theirs.backend_tokenizer.enable_padding(length=9)
    theirs.save_pretrained(str(folder))
    tokenizer: SavedTokenizer = Tokenizer(folder, max_tokens=6)
    if saved:
        Tokenizer(folder, max_tokens=6).save(tmp_path)
        tokenizer = load_saved(tmp_path, max_tokens=6)
        assert type(tokenizer) is SavedTokenizer
    assert tokenizer.pad_id == theirs.pad_token_id
    texts = ["a b c d e f g h", "", "nurse", "a b c d", "the nurse and the teacher"]
    for _ in range(2):
        table = tokenizer.encode(texts)
        expected = theirs(texts, truncation=True, max_length=6, padding=False)["input_ids"]
        assert [row.tolist() for row in (table[index] for index in range(len(texts)))] == expected
        rows = tokenizer.rows(texts)
        assert [ids.tolist() for ids, _ in rows] == expected
        assert [truncated for _, truncated in rows] == table.truncated.tolist()
        assert table.full_lengths.tolist() == [len(ids) for ids in theirs(texts, truncation=False, padding=False)["input_ids"]]


def test_a_checkpoints_tokenizer_is_read_as_older_files_and_such_without_a_core_are(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder()
    pretrained = Tokenizer(folder, 6)
    pretrained.save(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert load_saved(folder, 6).pad_id == 0
    file.write_text(json.dumps(config | {"pad_token": {"__type": "AddedToken", "content": "nurse", "lstrip": False}}))
    assert load_saved(folder, 6).pad_id == pretrained.encode(["nurse"])[0][1]
    file.write_text(json.dumps({name: value for name, value in config.items() if name != "pad_token"}))
    assert load_saved(folder, 6).pad_id == 0
    (folder / "tokenizer.json").unlink()
    assert type(load_saved(folder, 6)) is Tokenizer


def test_reading_a_checkpoints_tokenizer_imports_neither_torch_nor_what_reads_tables(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder()
    Tokenizer(folder, 6).save(folder)
    script = (
        "import sys, pathlib, serving.replica; from training.data.tokens import load_saved; "
        f"load_saved(pathlib.Path({str(folder)!r}), 6).encode(['nurse']); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "tokenizers" in found
    assert {"torch", "transformers", "pandas", "pyarrow"}.isdisjoint(found)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_tokens_are_spelled_with_a_blank_where_a_word_begins(model_type: str, make_encoder: Callable[..., Path]) -> None:
    tokenizer = Tokenizer(make_encoder(model_type), 64)
    (row,) = (tokenizer.encode(["the nurse teaches the driver"])[0],)
    spelled = tokenizer.spelled(1_000)
    assert len(spelled) == 1_000
    assert spelled[-1] == ""
    assert "".join(spelled[token] for token in row[1:-1]).strip() == "the nurse teaches the driver"
    assert spelled[row[0]] == spelled[row[-1]] == " "


def test_a_run_of_hashes_makes_no_vocabulary_one_of_word_pieces(make_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(make_encoder("roberta"), 64)
    tokens = ["Ġthe", "Ġnurse", "ing", "####", "########", "Ġ"]
    monkeypatch.setattr(tokenizer._tokenizer, "get_vocab", lambda: {token: 100 + place for place, token in enumerate(tokens)})
    assert tokenizer.spelled(106)[100:] == (" the", " nurse", "ing", "####", "########", " ")
    pieces = ["the", "nurse", "##ing", "##s", "Ġthe"]
    monkeypatch.setattr(tokenizer._tokenizer, "get_vocab", lambda: {token: 100 + place for place, token in enumerate(pieces)})
    assert tokenizer.spelled(105)[100:] == (" the", " nurse", "ing", "s", " Ġthe")


@pytest.mark.parametrize("kind", [Tokenizer, load_saved])
def test_many_texts_are_tokenised_some_at_a_time(kind: Any, make_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_encoder()
    Tokenizer(folder, 6).save(folder)
    texts = [f"the nurse teaches {'the driver ' * (row % 5)}" for row in range(23)]
    expected, seen = kind(folder, 6).encode(texts), []
    monkeypatch.setattr(tokens, "_TOGETHER", 10)
    tokenizer = kind(folder, 6)
    ids = tokenizer._ids
    monkeypatch.setattr(tokenizer, "_ids", lambda some: (seen.append(len(some)), ids(some))[1])
    found = tokenizer.encode(texts)
    assert seen == [10, 10, 3]
    assert (found.digest, found.full_lengths.tolist()) == (expected.digest, expected.full_lengths.tolist())


def test_no_texts_make_an_empty_table(make_encoder: Callable[..., Path]) -> None:
    assert len(Tokenizer(make_encoder(), 6).encode([])) == 0


def test_taking_texts_keeps_their_tokens() -> None:
    table = make_token_table([[1, 2], [3], [4, 5, 6]], [2, 1, 9])
    taken = table.take([2, 0])
    assert [row.tolist() for row in (taken[0], taken[1])] == [[4, 5, 6], [1, 2]]
    assert taken.truncated.tolist() == [True, False]


@pytest.mark.parametrize("tokens", [1, 3, 4, 100])
def test_parts_hold_all_texts_in_order(tokens: int) -> None:
    rows = [[1, 2], [], [3], [4, 5, 6, 7, 8], [9]]
    table = make_token_table(rows, [9, 0, 1, 5, 1])
    parts = list(table.parts(tokens))
    assert [part[place].tolist() for part in parts for place in range(len(part))] == rows
    assert np.concatenate([part.full_lengths for part in parts]).tolist() == [9, 0, 1, 5, 1]
    # Only a text that is longer by itself, or begins before the limit, goes beyond it.
    assert all(part.offsets[-2] < tokens + 1 for part in parts)
    assert [len(part) for part in make_token_table([], []).parts(tokens)] == [0]


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="tokenizer in"):
        Tokenizer(tmp_path, 8)


def test_padding_reaches_only_the_longest_text() -> None:
    ids, mask = pad([np.array([1, 2], np.int32), np.array([3], np.int32)], pad_id=9)
    assert ids.tolist() == [[1, 2], [3, 9]]
    assert mask.tolist() == [[1, 1], [1, 0]]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=200),
    batch_tokens=st.integers(8, 1000),
    batch_texts=st.integers(1, 40),
    seed=st.none() | st.integers(0, 99),
)
def test_every_text_stands_in_one_batch_within_the_budget(
    lengths: list[int], batch_tokens: int, batch_texts: int, seed: int | None
) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, batch_tokens, batch_texts, None if seed is None else np.random.default_rng(seed))
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_texts
        assert len(batch) == 1 or array[batch].max() * len(batch) <= batch_tokens


def test_batches_hold_texts_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 500)
    batches = plan_batches(lengths, 2048, 64, np.random.default_rng(1))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded < 1.15 * lengths.sum()


def test_another_seed_gives_other_batches() -> None:
    inputs = TokenInputs(make_token_table([[1] * (3 + index % 7) for index in range(60)], [9] * 60), 0)
    plans = [[batch.tolist() for batch in plan_batches(inputs.lengths, 64, 8, np.random.default_rng(seed))] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
