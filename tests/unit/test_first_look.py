"""The first look: a score from a sample, the same each time, of all validation texts where they are few."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.network.encoder import find_encoder
from training.network.model import TwoHeadBert
from training.search.prepared import make_assignment
from training.search.proposing.search_space import trial_settings
from training.search.trials import first_look
from training.search.trials.assignment import Assignment
from training.search.trials.build import build_model
from training.search.trials.first_look import look, look_at_words
from training.search.trials.reading import piece_scores
from training.settings import TrainingSettings


@pytest.fixture
def assignment(make_encoder: Callable[..., Path], tmp_path: Path) -> Assignment:
    jobs = ("driver", "nurse", "sales")
    lines = [
        "text,job,letter",
        *(f"{jobs[row % 3]} {'abc'[row // 3 % 3]} {row},{jobs[row % 3]},{'abc'[row // 3 % 3]}" for row in range(240)),
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(tmp_path / "table.csv")]},
            "heads": {"job": {}, "letter": {}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "tuning": {"score_weights": {"job": 3.0, "letter": 1.0}},
        }
    )
    source = find_encoder(settings.encoder)
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16), str(tmp_path / "storage"))


def model_of(assignment: Assignment) -> TwoHeadBert:
    return build_model(assignment, trial_settings(assignment.settings, {}))


def test_it_scores_a_sample_the_same_each_time(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "_TRAINING_TOKENS", 300)
    first, second = (look(assignment, model_of(assignment)) for _ in range(2))
    assert first == second
    training = assignment.tokens["training"]
    assert 300 / training.lengths.max() - 1 <= first.texts < len(training)
    # Few enough for all: comparable with every score that follows.
    assert first.validation_texts == len(assignment.tokens["validation"])
    assert first.score == pytest.approx((3 * first.heads["job"] + first.heads["letter"]) / 4)


def test_word_pieces_alone_are_a_look_at_all_texts(assignment: Assignment) -> None:
    """Here they tell everything, so that the sample's heads have nothing to add."""
    seen = look_at_words(assignment)
    assert seen is not None
    assert (seen.texts, seen.validation_texts) == tuple(len(assignment.tokens[split]) for split in ("training", "validation"))
    assert seen.heads == {"job": 1.0, "letter": 1.0}
    assert look(assignment, model_of(assignment)).heads == seen.heads


def test_a_head_that_wants_none_is_scored_by_itself(assignment: Assignment) -> None:
    heads = {name: one.model_copy(update={"word_pieces": name == "job"}) for name, one in assignment.settings.heads.items()}
    mixed = replace(assignment, settings=assignment.settings.model_copy(update={"heads": heads})).with_words()
    assert list(mixed.worded) == ["job"]
    assert look_at_words(mixed) is None
    assert look(mixed, model_of(mixed)).heads["job"] == 1.0


def test_what_is_said_is_held_out_of_training_texts_and_as_a_model_says_it_of_others(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, heads = model_of(assignment), tuple(assignment.worded)
    training = piece_scores(assignment, heads, "training")
    assert np.array_equal(training[:, :3].numpy(), assignment.worded["job"].held_out)
    table = assignment.tokens["validation"]
    assert model.word_pieces is not None
    rows = [torch.from_numpy(table[place]).long()[None] for place in range(len(table))]
    alone = torch.cat([model.word_pieces.of_padded(row, None) for row in rows])
    # A text at a time.
    monkeypatch.setattr("training.search.trials.reading._WEIGHTS_TOGETHER", 1)
    assert torch.allclose(piece_scores(assignment, heads, "validation"), alone, atol=1e-5)


def test_many_validation_texts_are_sampled_too(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "_VALIDATION_TOKENS", 60)
    assert look(assignment, model_of(assignment)).validation_texts < len(assignment.tokens["validation"])


def test_the_sample_is_drawn_from_everywhere(assignment: Assignment) -> None:
    table = assignment.tokens["training"]
    chosen = first_look._sample(table, int(table.lengths.sum()) // 2, seed=7)
    assert len(set(chosen.tolist())) == len(chosen)
    assert 0.3 < float(np.mean(chosen < len(table) // 2)) < 0.7
    assert first_look._sample(table, 10**9, seed=7).tolist() == list(range(len(table)))
    assert len(first_look._sample(table, 1, seed=7)) == 1
