"""The first rung: heads on the frozen encoder are found, kept, read back whole or not at all, and given to trials by shape."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import Storage
from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.fitting.loss import class_weights
from training.network.encoder import find_encoder
from training.search.prepared import make_assignment
from training.search.proposing.search_space import TrialSettings, distributions, first_points, trial_settings
from training.search.trials import heads_alone
from training.search.trials.assignment import Assignment, Order
from training.search.trials.build import build_model, prepare_fit
from training.search.trials.first_rung import _explore
from training.search.trials.found_heads import FirstRung, join, kind, read_rung, write_rung
from training.search.trials.heads_alone import begin_heads, encode, explore_head
from training.search_settings import Choices
from training.settings import TrainingSettings

JOBS, LEVELS = ("driver", "nurse", "sales"), ("none", "school", "master")


@pytest.fixture
def assignment(make_encoder: Callable[..., Path], tmp_path: Path) -> Assignment:
    lines = [
        "text,job,level",
        *(f"the {JOBS[row % 3]} and {LEVELS[row // 3 % 3]} {row},{JOBS[row % 3]},{LEVELS[row // 3 % 3]}" for row in range(120)),
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(tmp_path / "table.csv")]},
            # Their words would leave nothing to find.
            "heads": {
                "job": {"word_pieces": False},
                "level": {"ordered": True, "classes": LEVELS, "class_weighting": "inverse_sqrt", "word_pieces": False},
            },
            "encoder": {"name": str(make_encoder("bert")), "max_tokens": 16},
            "search_space": {"hidden_size": {"choices": [0, 8]}},
            "fit": {"epochs": 2, "frozen_layers": 2},
            "tuning": {"head_candidates": 20},
        }
    )
    source = find_encoder(settings.encoder)
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16), str(tmp_path / "storage"))


def seeded(trial: TrialSettings, seed: int) -> TrialSettings:
    return replace(trial, fit=trial.fit.model_copy(update={"seed": seed}))


def rung_of(assignment: Assignment) -> FirstRung:
    model = build_model(assignment, trial_settings(assignment.settings, {}))
    pooled = encode(assignment, model)
    assert pooled is not None
    return join([explore_head(assignment, head, pooled) for head in assignment.settings.heads], 1.5)


def test_the_best_of_every_shape_is_found_the_same_each_time(assignment: Assignment) -> None:
    first, second = rung_of(assignment), rung_of(assignment)
    for head, one in first.heads.items():
        assert one.candidates == 20
        assert list(one.scores) == sorted(one.scores, reverse=True)
        shapes = [(found.hidden_size, found.loss) for found in one.best]
        assert len(set(shapes)) == len(shapes) > 1
        assert (one.best, one.scores) == (second.heads[head].best, second.heads[head].scores)
    assert {found.loss for found in first.heads["job"].best} == {"softmax"}
    assert {found.loss for found in first.heads["level"].best} == {"softmax", "corn"}
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())


def test_its_point_is_one_of_the_space(assignment: Assignment) -> None:
    searched = distributions(assignment.settings)
    point = rung_of(assignment).point(searched)
    assert set(point) == {path for path in searched if path.rpartition("/")[2] in ("hidden_size", "dropout", "loss", "class_weighting")}
    trial_settings(assignment.settings, point)


def test_it_is_read_back_whole_or_not_at_all(assignment: Assignment, tmp_path: Path) -> None:
    storage, rung = Storage(str(tmp_path / "storage")), rung_of(assignment)
    assert read_rung(storage, "searches/one", assignment.settings.heads) is None
    write_rung(storage, "searches/one", rung)
    found = read_rung(storage, "searches/one", assignment.settings.heads)
    assert found is not None
    assert found.heads == rung.heads
    assert found.cpu_s == rung.cpu_s > 1.5
    assert all(torch.equal(value, found.tensors[name]) for name, value in rung.tensors.items())
    weights = tmp_path / "storage" / "searches" / "one" / "heads.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert read_rung(storage, "searches/one", assignment.settings.heads) is None
    (weights.parent / "heads.json").write_text("{")
    assert read_rung(storage, "searches/one", assignment.settings.heads) is None
    write_rung(storage, "searches/one", rung)


def test_one_of_an_earlier_release_is_kept_and_its_seconds_count(assignment: Assignment, tmp_path: Path) -> None:
    storage, rung = Storage(str(tmp_path / "storage")), rung_of(assignment)
    # As it was written before there was a choice of class weightings: neither candidates nor names of tensors have one.
    write_rung(storage, "searches/one", replace(rung, tensors={without(name): value for name, value in rung.tensors.items()}))
    file = tmp_path / "storage" / "searches" / "one" / "heads.json"
    facts = json.loads(file.read_text())
    assert [one.pop("class_weighting") for one in facts["heads"]["level"]["best"]] == ["inverse_sqrt"] * len(rung.heads["level"].best)
    assert {one.pop("class_weighting") for one in facts["heads"]["job"]["best"]} == {"none"}
    file.write_text(json.dumps(facts))
    found = read_rung(storage, "searches/one", assignment.settings.heads)
    assert found is not None
    assert found.heads == rung.heads
    assert found.cpu_s == rung.cpu_s
    assert found.tensors.keys() == rung.tensors.keys()
    assert all(torch.equal(value, found.tensors[name]) for name, value in rung.tensors.items())
    # A model of one head reads it too.
    alone = read_rung(storage, "searches/one", {"level": assignment.settings.heads["level"]})
    assert alone is not None
    assert alone.heads["level"] == rung.heads["level"]


def without(name: str) -> str:
    head, size, loss, _, parameter = name.split("/")
    return "/".join([head, size, loss, parameter])


def test_a_trial_begins_with_what_was_found_and_scores_as_much(assignment: Assignment, tmp_path: Path) -> None:
    rung = rung_of(assignment)
    write_rung(Storage(assignment.storage), "searches/one", rung)
    own = replace(assignment, heads_from="searches/one")
    trial = trial_settings(own.settings, rung.point(distributions(own.settings)))
    fit = prepare_fit(own, trial)
    for head, module in zip(own.settings.heads, fit.model.heads, strict=True):
        best = rung.heads[head].best[0]
        for name, value in module.state_dict().items():
            assert torch.equal(value, rung.tensors[f"{kind(head, best)}/{name}"])
    epochs = list(fit.epochs())
    assert [one.number for one in epochs] == [0, 1, 2]
    assert epochs[0].loss is None
    assert epochs[-1].best_score >= epochs[0].score


def test_another_seed_trains_the_heads_anew(assignment: Assignment) -> None:
    rung, trial = rung_of(assignment), trial_settings(assignment.settings, {})
    model = build_model(assignment, trial)
    weights = {}
    for seed in (7, 8, 8):
        assert begin_heads(model, assignment, rung, seeded(trial, seed))
        weights[seed] = [value.clone() for value in model.heads.state_dict().values()]
    assert torch.equal(weights[7][0], rung.tensors["job/0/softmax/none/output.weight"])
    assert not torch.equal(weights[8][0], weights[7][0])
    begin_heads(model, assignment, rung, seeded(trial, 8))
    assert all(torch.equal(one, other) for one, other in zip(weights[8], model.heads.state_dict().values(), strict=True))


def test_a_shape_that_was_not_tried_begins_at_random(assignment: Assignment) -> None:
    rung = rung_of(assignment)
    trial = trial_settings(assignment.settings, {"heads/job/hidden_size": 32})
    model = build_model(assignment, trial)
    before = [value.clone() for value in model.heads[0].state_dict().values()]
    assert not begin_heads(model, assignment, rung, trial)
    assert all(torch.equal(one, other) for one, other in zip(before, model.heads[0].state_dict().values(), strict=True))


def test_where_words_tell_everything_the_best_heads_add_nothing(assignment: Assignment) -> None:
    heads = {name: one.model_copy(update={"word_pieces": True}) for name, one in assignment.settings.heads.items()}
    worded = replace(assignment, settings=assignment.settings.model_copy(update={"heads": heads})).with_words()
    rung = rung_of(worded)
    assert {head: one.scores[0] for head, one in rung.heads.items()} == {"job": 1.0, "level": 1.0}
    assert not rung.tensors[f"{kind('job', rung.heads['job'].best[0])}/output.weight"].any()


def test_without_room_there_is_no_first_rung(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.search.trials import reading

    monkeypatch.setattr(reading, "_mapped", {})
    none = assignment.settings.activations.model_copy(update={"most_bytes": 0})
    own = replace(assignment, settings=assignment.settings.model_copy(update={"activations": none}))
    assert encode(own, build_model(own, trial_settings(own.settings, {}))) is None
    # Who explores may stand on another machine than who encoded.
    assert _explore(own, ("job",)) is None


def test_when_every_candidate_diverges_heads_begin_at_random(assignment: Assignment, tmp_path: Path) -> None:
    space = assignment.settings.search_space.model_copy(update={"head_learning_rate": 1e30})
    wild = replace(assignment, settings=assignment.settings.model_copy(update={"search_space": space}))
    rung, storage = rung_of(wild), Storage(str(tmp_path / "storage"))
    assert {head for head, one in rung.heads.items() if not one.best} == {"job", "level"}
    assert rung.tensors == {}
    write_rung(storage, "searches/one", rung)
    found = read_rung(storage, "searches/one", assignment.settings.heads)
    assert found is not None
    assert found.heads == rung.heads
    assert not rung.point(distributions(wild.settings))
    trial = trial_settings(wild.settings, {})
    assert not begin_heads(build_model(wild, trial), wild, rung, trial)


def test_of_many_texts_candidates_compete_on_some_and_the_winner_learns_from_all(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads_alone, "_MOST_CONTEST", 30)
    learned: list[int] = []
    whole = heads_alone.train_population

    def train(candidates: Any, question: Any, features: Any, *rest: Any) -> Any:
        learned.append(len(features.labels))
        return whole(candidates, question, features, *rest)

    monkeypatch.setattr(heads_alone, "train_population", train)
    pooled = encode(assignment, build_model(assignment, trial_settings(assignment.settings, {})))
    assert pooled is not None
    found = explore_head(assignment, "job", pooled)
    assert learned == [30, 30, len(assignment.tokens["training"])]
    assert len(found.heads["job"].best) > 1


def test_where_class_weightings_are_searched_a_head_begins_with_its_own(assignment: Assignment) -> None:
    ways = ("none", "inverse_sqrt", "balanced")
    space = assignment.settings.search_space.model_copy(update={"class_weighting": Choices(choices=ways), "hidden_size": 0})
    own = replace(assignment, settings=assignment.settings.model_copy(update={"search_space": space}))
    rung = rung_of(own)
    assert {found.class_weighting for found in rung.heads["job"].best} == set(ways)
    assert rung.point(distributions(own.settings))["heads/job/class_weighting"] == rung.heads["job"].best[0].class_weighting
    weights = {}
    for way in ways:
        trial = trial_settings(own.settings, {"heads/job/class_weighting": way})
        model = build_model(own, trial)
        assert begin_heads(model, own, rung, trial)
        weights[way] = model.heads[0].get_parameter("output.weight").detach().clone()
        assert torch.equal(weights[way], rung.tensors[f"job/0/softmax/{way}/output.weight"])
    assert not torch.equal(weights["none"], weights["balanced"])


def test_what_is_fixed_for_a_head_is_kept_on_the_first_rung_in_trials_and_where_all_texts_are_learned_from(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = {"hidden_size": 8, "dropout": 0.25, "class_weighting": "balanced"}
    chosen = assignment.settings.model_dump(mode="json")
    chosen["search_space"]["heads"] = {"level": fixed | {"loss": "corn", "loss_weight": 3.0}}
    settings = TrainingSettings.model_validate(chosen)
    tried: list[Any] = []
    whole = heads_alone.train_population

    def train(candidates: Any, question: Any, *rest: Any) -> Any:
        tried.extend((question.name, one) for one in candidates)
        return whole(candidates, question, *rest)

    monkeypatch.setattr(heads_alone, "train_population", train)
    own = replace(assignment, settings=settings)
    rung = rung_of(own)
    again = own.with_validation()
    for shared, point in ((own, first_points(settings)[0]), (own, rung.point(distributions(settings))), (again, {})):
        order = Order("refit-0", "refit", 0, ("job", "level"), point, 8, depths=(3, 2))
        for trial in order.trainings(shared.settings):
            model = build_model(shared, trial)
            assert begin_heads(model, shared, rung, trial)
            level = trial.heads["level"]
            assert (level.hidden_size, level.dropout, level.loss, level.loss_weight) == (8, 0.25, "corn", 3.0)
            assert (model.heads[1].dropout.p, model.heads[1].loss) == (0.25, "corn")
            labels = shared.labels["training"]["level"]
            weights = prepare_fit(shared, trial)._objective.class_weights["level"]
            assert np.array_equal(weights, class_weights("balanced", labels, len(LEVELS), "corn"))
    found = {(one.hidden_size, one.dropout, one.loss, one.class_weighting) for name, one in tried if name == "level"}
    assert found == {(8, 0.25, "corn", "balanced")}
    assert len({one.dropout for name, one in tried if name == "job"}) > 10
