"""From settings to the searched space, its first points and single trials."""

import numpy as np
import pytest

from cluster.errors import SettingsError
from training.network.inputs import plan_batches
from training.search.proposing.search_space import (
    check_depth,
    check_space,
    dimensions,
    distributions,
    first_points,
    moved_into,
    point_of,
    trial_settings,
    without_equal_batches,
)
from training.search_settings import Choices
from training.settings import TrainingSettings


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(changes)


def test_every_head_is_searched_and_only_the_ratio_of_their_weights() -> None:
    paths = set(dimensions(settings()))
    assert {"heads/category/hidden_size", "heads/education/hidden_size", "heads/education/loss_weight", "layer_decay"} <= paths
    assert "heads/category/loss_weight" not in paths
    assert "frozen_layers" not in paths


def test_a_number_fixes_a_dimension_and_a_head_can_have_its_own() -> None:
    chosen = settings(
        search_space={"layer_decay": 0.8, "dropout": {"low": 0.0, "high": 0.2}, "heads": {"education": {"hidden_size": 64, "dropout": 0.3}}}
    )
    assert not {"layer_decay", "heads/education/hidden_size", "heads/education/dropout"} & set(dimensions(chosen))
    assert dimensions(chosen)["heads/category/dropout"].high == 0.2
    trial = trial_settings(chosen, {"heads/category/hidden_size": 128})
    assert trial.fit.layer_decay == 0.8
    assert (trial.heads["education"].hidden_size, trial.heads["education"].dropout) == (64, 0.3)
    assert trial.heads["category"].hidden_size == 128


def test_what_holds_for_each_head_still_does_where_a_head_has_its_own_and_the_search_goes_on() -> None:
    """Written down, a head's own part of the space has every dimension."""
    chosen = settings(search_space={"dropout": 0.2, "loss": "softmax", "heads": {"education": {"hidden_size": 64}, "category": {}}})
    assert not {path for path in dimensions(chosen) if path.endswith(("dropout", "loss", "heads/education/hidden_size"))}
    again = TrainingSettings.model_validate(chosen.model_dump(mode="json"))
    assert dimensions(again) == dimensions(chosen)
    assert trial_settings(again, {}).heads == trial_settings(chosen, {}).heads
    assert {head: one.dropout for head, one in trial_settings(again, {}).heads.items()} == {"category": 0.2, "education": 0.2}
    assert (
        trial_settings(settings(search_space={"dropout": 0.2, "heads": {"category": {"dropout": None}}}), {}).heads["category"].dropout
        == 0.1
    )


@pytest.mark.parametrize("space", [{"heads": {"category": {"loss_weight": 2.0}}}, {"loss_weight": 2.0}], ids=["own", "of each"])
def test_the_first_heads_weight_can_be_given_but_is_not_searched(space: dict[str, object]) -> None:
    chosen = settings(search_space=space)
    assert "heads/category/loss_weight" not in dimensions(chosen)
    assert [trial_settings(chosen, point).heads["category"].loss_weight for point in ({}, *first_points(chosen))] == [2.0] * (
        1 + len(first_points(chosen))
    )


def test_trial_0_is_the_default_moved_into_the_space() -> None:
    points = first_points(settings(fit={"batch_tokens": 512}, search_space={"batch_tokens": {"choices": [1024, 4096]}}))
    assert len(points) == 1
    assert points[0]["batch_tokens"] == 1024
    assert points[0]["heads/education/loss_weight"] == 1.0
    assert points[0]["encoder_learning_rate"] == settings().fit.encoder_learning_rate


def test_unequal_default_weights_bring_an_equal_weights_trial() -> None:
    points = first_points(settings(heads={"a": {}, "b": {"loss_weight": 3.0}}))
    assert [point["heads/b/loss_weight"] for point in points] == [3.0, 1.0]


def test_equal_weights_are_those_that_the_first_head_is_given() -> None:
    chosen = settings(heads={"a": {}, "b": {}}, search_space={"heads": {"a": {"loss_weight": 2.0}}})
    assert [point["heads/b/loss_weight"] for point in first_points(chosen)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("fit", "space"),
    [
        ({}, {"heads": {"c": {"loss_weight": 4.0}}}),
        ({}, {"loss_weight": {"low": 2.0, "high": 4.0}}),
        ({}, {"balancing": "pcgrad"}),
        ({"balancing": "uncertainty"}, {}),
    ],
    ids=["one is fixed", "not in the space", "balanced otherwise", "balanced otherwise by default"],
)
def test_where_weights_cannot_be_equal_no_trial_is_said_to_have_equal_ones(fit: dict[str, object], space: dict[str, object]) -> None:
    assert len(first_points(settings(heads={"a": {}, "b": {"loss_weight": 3.0}, "c": {}}, fit=fit, search_space=space))) == 1


def test_balancing_that_is_searched_is_fixed_in_the_equal_weights_trial() -> None:
    space = {"balancing": {"choices": ["uncertainty", "fixed"]}}
    points = first_points(settings(heads={"a": {}, "b": {"loss_weight": 3.0}}, fit={"balancing": "uncertainty"}, search_space=space))
    assert [point["balancing"] for point in points] == ["uncertainty", "fixed"]


def test_a_chain_is_searched_for_ordered_heads_only() -> None:
    searched = dimensions(settings())
    assert searched["heads/education/loss"].choices == ("softmax", "corn")
    assert "heads/category/loss" not in searched
    trial = trial_settings(settings(), {"heads/education/loss": "corn"})
    assert (trial.heads["education"].loss, trial.heads["category"].loss) == ("corn", "softmax")


def test_class_weighting_is_searched_only_where_that_is_wanted() -> None:
    assert not [path for path in dimensions(settings()) if path.endswith("/class_weighting")]
    own = {"category": {"class_weighting": {"choices": ["balanced", "none"]}}, "education": {"class_weighting": "inverse_sqrt"}}
    chosen = settings(search_space={"heads": own})
    # In its place among the others nothing moves.
    assert [path for path in dimensions(chosen) if path != "heads/category/class_weighting"] == list(dimensions(settings()))
    (default,) = first_points(chosen)
    assert default["heads/category/class_weighting"] == "none"
    assert trial_settings(chosen, default).heads["education"].class_weighting == "inverse_sqrt"
    assert trial_settings(chosen, {"heads/category/class_weighting": "balanced"}).heads["category"].class_weighting == "balanced"
    assert point_of(chosen, {}, {"category": {"class_weighting": "balanced"}})["heads/category/class_weighting"] == "balanced"


def test_optuna_gets_the_same_paths_and_whole_numbers_stay_whole() -> None:
    chosen = settings(search_space={"frozen_layers": {"low": 0, "high": 3}, "batch_tokens": {"low": 64, "high": 4096, "log": True}})
    found = distributions(chosen)
    assert set(found) == set(dimensions(chosen))
    assert (found["frozen_layers"].low, found["frozen_layers"].high) == (0, 3)
    assert isinstance(found["batch_tokens"].high, int)
    assert found["batch_tokens"].log
    assert found["heads/education/hidden_size"].choices == (0, 128, 256)


def test_an_earlier_configuration_is_moved_into_the_space() -> None:
    chosen = settings(search_space={"encoder_learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}})
    point = point_of(chosen, {"encoder_learning_rate": 5e-3, "batch_tokens": 3000}, {"education": {"loss": "corn", "hidden_size": 100}})
    assert point["encoder_learning_rate"] == 1e-4
    assert point["batch_tokens"] in (2048, 4096)
    assert (point["heads/education/loss"], point["heads/education/hidden_size"]) == ("corn", 128)
    assert point["heads/category/dropout"] == 0.1


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"layer_decay": {"low": 0.5, "high": 1.5}}, "training.search_space.layer_decay reaches 1.5"),
        ({"dropout": 1.0}, "training.search_space.dropout reaches 1.0"),
        ({"batch_tokens": {"low": 64.5, "high": 100}}, "batch_tokens is searched over .* whole numbers"),
        ({"class_weighting": {"choices": ["none", "sqrt"]}}, "training.search_space.class_weighting reaches sqrt"),
        ({"hidden_size": 64.5}, "heads/category/hidden_size is 64.5, but must be a whole number"),
        ({"heads": {"education": {"hidden_size": "big"}}}, "heads/education/hidden_size is 'big', but must be a whole number"),
        ({"heads": {"category": {"loss": "corn"}}}, "training.search_space.heads.category.loss is 'corn', but only ordered classes"),
    ],
)
def test_an_end_that_is_not_allowed_is_found_before_any_trial(space: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_space(settings(search_space=space))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"fit": {"frozen_layers": 7}}, "fit.frozen_layers reaches 7"),
        ({"search_space": {"frozen_layers": {"low": 0, "high": 8}}}, "search_space.frozen_layers reaches 8"),
        ({"search_space": {"frozen_layers": {"choices": [5, 7]}}}, "search_space.frozen_layers reaches 7"),
        ({"search_space": {"frozen_layers": 9}}, "search_space.frozen_layers reaches 9"),
    ],
)
def test_more_frozen_layers_than_the_encoder_has_are_found_before_any_trial(changes: dict[str, object], where: str) -> None:
    with pytest.raises(SettingsError, match=where):
        check_depth(settings(**changes), 6)
    check_depth(settings(**changes), 9)


@pytest.mark.parametrize(
    ("choices", "longest", "expected"),
    [
        # 32 texts of at most 20 tokens fill no batch of 640.
        ((1024, 2048, 4096), 20, 1024),
        ((4096, 512, 2048), 20, Choices(choices=(512, 2048))),
        ((1024, 2048, 4096), 40, Choices(choices=(1024, 2048))),
        ((1024, 2048, 4096), 256, Choices(choices=(1024, 2048, 4096))),
        ((640, 641), 20, 640),
    ],
)
def test_choices_that_make_the_same_batches_are_one(choices: tuple[int, ...], longest: int, expected: object) -> None:
    given = TrainingSettings.model_validate({"heads": {"job": {}}, "search_space": {"batch_tokens": {"choices": choices}}})
    found = without_equal_batches(given, longest)
    assert found.search_space.batch_tokens == expected
    assert without_equal_batches(found, longest) == found
    # And they are the same: every epoch has the same plan.
    lengths = np.random.default_rng(3).integers(4, longest + 1, 300)
    lengths[0] = longest

    def plan(size: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_batches(lengths, size, given.fit.batch_texts, np.random.default_rng(1))]

    kept = expected.choices if isinstance(expected, Choices) else (expected,)
    assert all(plan(size) == plan(max(kept)) for size in choices if size not in kept)
    point = moved_into(found, {"batch_tokens": 4096, "layer_decay": 0.8})
    assert point["layer_decay"] == 0.8
    assert point.get("batch_tokens") == (max(kept) if isinstance(expected, Choices) else None)
