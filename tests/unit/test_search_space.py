"""From settings to the searched space, its first points and single trials."""

import pytest

from cluster.errors import SettingsError
from training.search_space import check_space, dimensions, first_points, trial_settings, tune_space
from training.settings import TrainingSettings
from training.trial import flat


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


def test_trial_0_is_the_default_moved_into_the_space() -> None:
    points = first_points(settings(fit={"batch_tokens": 512}, search_space={"batch_tokens": {"choices": [1024, 4096]}}))
    assert len(points) == 1
    assert points[0]["batch_tokens"] == 1024
    assert points[0]["heads/education/loss_weight"] == 1.0
    assert points[0]["encoder_learning_rate"] == settings().fit.encoder_learning_rate


def test_unequal_default_weights_bring_an_equal_weights_trial() -> None:
    points = first_points(settings(heads={"a": {}, "b": {"loss_weight": 3.0}}))
    assert [point["heads/b/loss_weight"] for point in points] == [3.0, 1.0]


def test_tune_gets_the_space_nested_and_hands_back_the_same_paths() -> None:
    chosen = settings()
    assert set(flat(tune_space(chosen))) == set(dimensions(chosen))


def test_whole_numbers_stay_whole_through_a_range() -> None:
    chosen = settings(search_space={"frozen_layers": {"low": 0, "high": 3}, "batch_tokens": {"low": 64, "high": 4096, "log": True}})
    samples = [flat({name: tune_space(chosen)[name].sample() for name in ("frozen_layers", "batch_tokens")}) for _ in range(200)]
    assert {sample["frozen_layers"] for sample in samples} == {0, 1, 2, 3}
    assert all(64 <= sample["batch_tokens"] <= 4096 for sample in samples)
    assert isinstance(trial_settings(chosen, samples[0]).fit.batch_tokens, int)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"layer_decay": {"low": 0.5, "high": 1.5}}, "training.search_space.layer_decay reaches 1.5"),
        ({"dropout": 1.0}, "training.search_space.dropout reaches 1.0"),
        ({"batch_tokens": {"low": 64.5, "high": 100}}, "batch_tokens is searched over .* whole numbers"),
    ],
)
def test_an_end_that_is_not_allowed_is_found_before_any_trial(space: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_space(settings(search_space=space))


def test_a_flat_configuration_joins_nested_keys() -> None:
    assert flat({"a": 1, "heads": {"x": {"dropout": 0.1}}}) == {"a": 1, "heads/x/dropout": 0.1}
