"""What words say by themselves as a trial: scored as the whole model answers, numbered after the others, left out where it cannot be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.fitting.predict import predict_logits
from training.judging.calibration import measured
from training.judging.comparison import WORDS_ALONE
from training.judging.metrics import joint_accuracy, probabilities
from training.network.encoder import find_encoder
from training.network.inputs import TokenInputs
from training.search.deciding.contest import standings, winner
from training.search.prepared import make_assignment
from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import trial_settings
from training.search.trials.assignment import Assignment, EarlierWeights
from training.search.trials.build import build_model
from training.search.trials.first_look import look_at_words, words_say
from training.search.words_alone import words_alone, words_if_better
from training.settings import TrainingSettings


@pytest.fixture(params=["softmax", "corn"])
def assignment(make_encoder: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest) -> Assignment:
    jobs = ("driver", "nurse", "sales")
    # Every fifth label is of another class, so that no score is 1.
    rows = [(f"{jobs[row % 3]} {'abc'[row // 3 % 3]}", jobs[(row + (row % 5 == 0)) % 3], "abc"[row // 3 % 3]) for row in range(240)]
    (tmp_path / "table.csv").write_text("\n".join(["text,job,letter", *(",".join(row) for row in rows)]))
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(tmp_path / "table.csv")], "duplicates": "keep"},
            "heads": {"job": {}, "letter": {"ordered": True, "classes": ["a", "b", "c"], "loss": request.param}},
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "tuning": {"score_weights": {"job": 3.0, "letter": 1.0}},
        }
    )
    source = find_encoder(settings.encoder)
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16), str(tmp_path / "storage"))


def test_it_is_scored_as_the_model_that_nobody_has_trained_answers(assignment: Assignment) -> None:
    history, seen = words_alone(assignment, []), look_at_words(assignment)
    assert history is not None
    assert seen is not None
    assert history.last["score"] == seen.score < 1.0
    assert history.last["head_scores"] == seen.heads
    model = build_model(assignment, trial_settings(assignment.settings, history.point))
    logits = predict_logits(model, TokenInputs(assignment.tokens["validation"], assignment.pad_id), 1_024)
    chosen = {head: values.argmax(axis=1) for head, values in logits.items()}
    assert history.last["joint_accuracy"] == joint_accuracy(assignment.labels["validation"], chosen)
    for head, scores in words_say(assignment).items():
        np.testing.assert_allclose(probabilities(logits[head]), probabilities(scores), atol=1e-6)


def test_it_is_scored_like_trials_at_a_fitted_temperature(assignment: Assignment) -> None:
    tuning = assignment.settings.tuning.model_copy(update={"score_metrics": {"job": "log_loss"}})
    likely = replace(assignment, settings=assignment.settings.model_copy(update={"tuning": tuning}))
    history = words_alone(likely, [])
    assert history is not None
    labels, said = assignment.labels["validation"]["job"], words_say(likely)["job"]
    assert history.last["best_metrics"]["job"]["log_loss"] == measured(labels, said, 0, "log_loss").log_loss


def test_its_number_is_after_those_of_other_trials(assignment: Assignment) -> None:
    others = [TrialHistory(f"{group}-{number}", group, number, {}, 7, "sampler") for group, number in (("trial", 3), ("single-job", 8))]
    history = words_alone(assignment, others)
    assert history is not None
    assert history.number == 4
    assert history.is_sound


def test_there_is_none_where_a_model_would_say_more_or_less(assignment: Assignment) -> None:
    assert words_alone(replace(assignment, start=EarlierWeights("versions/1", "a", "b")), []) is None
    heads = {name: one.model_copy(update={"word_pieces": name == "job"}) for name, one in assignment.settings.heads.items()}
    settings = assignment.settings.model_copy(update={"heads": heads})
    assert words_alone(replace(assignment, settings=settings).with_words(), []) is None


def trial(number: int, score: float, group: str = "trial") -> TrialHistory:
    report = {"score": score, "head_scores": {"job": score, "letter": score}, "epoch": 1, "best_number": 1}
    return TrialHistory(f"{group}-{number}", group, number, {}, 7, "sampler", epochs=[report], state="finished")


def test_words_win_where_no_configuration_is_better_in_the_mean(assignment: Assignment) -> None:
    words = words_alone(assignment, [])
    assert words is not None
    own = float(words.last["score"])
    # Where nothing trained they are all there is; what failed is to be told instead.
    assert [one.origin for one in words_if_better(assignment, [])] == [WORDS_ALONE]
    assert words_if_better(assignment, [replace(trial(0, 0.0), state="died", epochs=[])]) == []
    assert words_if_better(assignment, [trial(0, own + 0.01)]) == []
    assert [one.origin for one in words_if_better(assignment, [trial(0, own - 0.01)])] == [WORDS_ALONE]
    # Its luck in the search is not what it is judged by.
    searched = [trial(0, own + 0.1), trial(1, 0.1), trial(0, own - 0.01, "confirm-trial")]
    (found,) = words_if_better(assignment, searched)
    best, _ = winner(standings([*searched, found], assignment.settings.tuning), assignment.settings.tuning)
    assert (best.origin, best.number) == (WORDS_ALONE, 2)
    assert words_if_better(assignment, [*searched[:2], trial(0, own + 0.01, "confirm-trial")]) == []
    tuning = assignment.settings.tuning.model_copy(update={"mode": "pareto"})
    assert words_if_better(replace(assignment, settings=assignment.settings.model_copy(update={"tuning": tuning})), searched) == []
