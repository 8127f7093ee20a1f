"""A whole search on a real, local Ray: it finds, keeps to its budget, and says what failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.facts import Facts
from cluster.storage import Storage
from tests.small_searches import ENDED_WELL, ONE_BY_ONE, attach, result_of, storage_of, training, training_here
from training.search.proposing.ledger import Ledger

# In this process the libraries' own warnings would count as ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_a_search_finds_publishes_and_repeats_trial_0(project: Callable[..., Path], ray_that_is_up: Facts) -> None:
    settings = project()
    # As a user does it the first time: with nothing up.
    first = training(settings, "tune", "--name", "one")
    assert first.returncode == 0, first.stderr
    assert "on the test split:" in first.stdout
    assert "TF-IDF + logistic regression" in first.stdout
    result = result_of(storage_of(settings))
    assert [trial["state"] in ENDED_WELL for trial in result["trials"]] == [True] * 4
    assert result["trials"][1]["origin"] == "heads alone"
    means = {one["position"]: one["mean"] for one in result["confirmed"]}
    scored = [trial for trial in result["trials"] if trial["state"] != "passed over"]
    assert set(means) == {0, *(trial["position"] for trial in sorted(scored, key=lambda trial: -trial["score"])[:2])}
    assert means[result["best"]] == max(means.values()) > 0.5
    assert {entry["against"] for entry in result["comparisons"]} >= {"TF-IDF + logistic regression"}
    assert (settings.parent / "storage/searches/one/report.html").is_file()

    published = training_here(settings, "publish", "--promote")
    assert "production → version 1" in published.stdout, published.stderr
    from training.checkpoint import verify_checkpoint

    manifest = verify_checkpoint(settings.parent / "storage/registry/versions/000001")
    assert manifest.search["name"] == "one"
    assert manifest.search["trial"] in (f"trial-{result['best']}", f"confirm-{result['best']}-8")
    assert manifest.metrics["test"] == result["metrics"]["test"]
    assert {"report.json", "README.md"} <= set(manifest.files)
    for head in manifest.heads:
        assert head.validation_answers is not None
        assert sum(head.validation_answers.classes) == pytest.approx(1.0)

    attach(ray_that_is_up, storage_of(settings))
    second = training_here(settings, "tune", "--name", "two", "--set", "training.tuning.num_samples=1")
    assert second.returncode == 0, second.stderr
    zero = [next(trial for trial in result_of(storage_of(settings), name)["trials"] if trial["position"] == 0) for name in ("one", "two")]
    # Who climbs depends on the others; what trial 0 trained first does not.
    epochs = [[(epoch["number"], epoch["loss"], epoch["score"]) for epoch in trial["epochs"]] for trial in zero]
    common = min(map(len, epochs))
    assert common >= 2
    assert epochs[0][:common] == epochs[1][:common]
    assert result_of(storage_of(settings), "two")["data_digest"] == result["data_digest"]

    taken = training_here(settings, "tune", "--name", "two")
    assert (taken.returncode, "search 'two' exists already" in taken.stderr) == (2, True)


def test_a_diverging_trial_is_counted_and_the_search_goes_on(attached: Callable[..., Path]) -> None:
    # The default configuration is sane; learning rates of 1e30 make the loss infinite at once.
    space = {"encoder_learning_rate": {"choices": [5e-3, 1e30, 2e30, 3e30]}, "head_learning_rate": 2e-2}
    settings = attached(search_space=space, tuning={"num_samples": 6, "ladder": False, "max_concurrent_trials": 1, "confirm_top": 0})
    refused = training_here(settings, "tune", "--name", "one")
    states = [trial["state"] for trial in result_of(storage_of(settings))["trials"]]
    assert "diverged" in states
    assert refused.returncode == 4
    assert "trials failed, but at most 0 may" in refused.stderr
    assert result_of(storage_of(settings))["best"] in [
        trial["position"] for trial in result_of(storage_of(settings))["trials"] if trial["state"] != "diverged"
    ]
    assert training_here(settings, "tune", "--resume", "one", "--allow-failed", "6").returncode == 0


@pytest.mark.parametrize(
    "tuning",
    [
        {"sampler": "gp", "scheduler": "hyperband", "grace_period": 1},
        {"sampler": "random", "scheduler": "pbt", "grace_period": 1, "max_concurrent_trials": 4, "resources_per_trial": {"cpu": 0.5}},
        {"sampler": "grid", "scheduler": "none", "score_metrics": {"letter": "log_loss"}},
        {"mode": "pareto", "pick": "job >= 0.2, then letter", "grace_period": 1, "num_samples": 5},
    ],
    ids=["gp-hyperband", "random-pbt", "grid-none", "pareto-asha"],
)
def test_every_sampler_scheduler_and_mode_comes_to_an_end(attached: Callable[..., Path], tuning: dict[str, Any]) -> None:
    settings = attached(tuning={"num_samples": 4, "max_concurrent_trials": 1, "confirm_top": 0} | tuning)
    done = training_here(settings, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    result = result_of(storage_of(settings))
    assert len(result["trials"]) == tuning.get("num_samples", 4)
    assert all(trial["state"] in ENDED_WELL for trial in result["trials"])
    scores = {trial["position"]: trial["score"] for trial in result["trials"] if trial["state"] != "passed over"}
    histories = Ledger(Storage(str(storage_of(settings))), "searches/one/ledger").histories()
    climbed = [one for one in histories.values() if one.is_climbing]
    assert bool(climbed) == (tuning.get("scheduler") != "pbt")
    # Also who was stopped before.
    assert [one.name for one in climbed if one.depths[-1] not in {epoch["depth"] for epoch in one.epochs}] == []
    # A population never climbs, and a grid leaves nobody out.
    assert len(scores) == len(result["trials"]) or tuning.get("sampler") in ("gp", None)
    if tuning.get("mode") == "pareto":
        assert result["best"] in result["front"]
    else:
        assert scores[result["best"]] == max(scores.values())


def test_each_head_alone_is_compared_and_a_version_starts_the_next_search(attached: Callable[..., Path]) -> None:
    settings = attached(tuning={"num_samples": 2, "max_concurrent_trials": 1, "confirm_top": 1, "confirm_seeds": 1})
    done = training_here(settings, "tune", "--name", "one", "--compare-single")
    assert done.returncode == 0, done.stderr
    single = [entry for entry in result_of(storage_of(settings))["comparisons"] if entry["against"] == "one model per head"]
    assert [entry["head"] for entry in single] == ["job", "letter", None]
    assert "one model per head" in done.stdout

    assert training_here(settings, "publish", "--promote").returncode == 0
    remade = training_here(settings, "report", "production", "--out", str(settings.parent / "remade"), "--texts")
    assert remade.returncode == 0, remade.stderr
    assert (settings.parent / "remade/README.md").is_file()
    assert "the nurse" in (settings.parent / "remade/report.html").read_text() or not result_of(storage_of(settings))["errors"]["job"]
    assert result_of(storage_of(settings))["headline"].split("[")[0] in remade.stdout

    started = training_here(settings, "tune", "--name", "two", "--from-version", "1", "--with-weights", "--set", "training.fit.epochs=1")
    assert started.returncode == 0, started.stderr
    assert "from the configuration and weights of version 1" in started.stdout
    trials = result_of(storage_of(settings), "two")["trials"]
    assert [trial["origin"] for trial in trials] == ["default", "version 1"]
    # One epoch from trained weights is better than one from the pretrained ones would be: it starts where version 1 ended.
    assert trials[0]["score"] > 0.9 * result_of(storage_of(settings))["metrics"]["validation"]["score"]
    refused = training_here(settings, "tune", "--with-weights")
    assert (refused.returncode, "--with-weights is given without --from-version" in refused.stderr) == (2, True)


def test_where_training_spoils_what_words_say_they_are_published(attached: Callable[..., Path]) -> None:
    fit = {"epochs": 1, "encoder_learning_rate": 5e-3, "head_learning_rate": 50.0, "batch_texts": 8}
    tuning = {"num_samples": 1, "max_concurrent_trials": 1, "ladder": False, "confirm_top": 1, "confirm_seeds": 1, "refit": True}
    settings = attached(fit=fit, search_space={"encoder_learning_rate": 5e-3, "head_learning_rate": 50.0}, tuning=tuning)
    done = training_here(settings, "tune", "--name", "one")
    assert done.returncode == 0, done.stderr
    assert "(words by themselves" in done.stdout
    result = result_of(storage_of(settings))
    assert [(trial["position"], trial["origin"]) for trial in result["trials"]] == [(0, "default"), (1, "words alone")]
    assert (result["best"], result["published"]["name"]) == (1, "words")
    assert "nothing that trained was better" in result["headline"]
    assert "the published model learned from the validation texts too" not in " ".join(result["notes"])
    assert result["metrics"]["validation"]["score"] == pytest.approx(result["published"]["score"], abs=1e-6)
    assert "default" in {entry["against"] for entry in result["comparisons"]}
    assert training_here(settings, "publish", "--promote").returncode == 0


def test_a_budget_ends_the_search_in_time_and_says_so(attached: Callable[..., Path]) -> None:
    # Of a first rung a budget is another matter, below: on a busy machine this one could end while its worker starts.
    settings = attached(tuning=ONE_BY_ONE | {"confirm_top": 0, "ladder": False})
    ended = training_here(settings, "tune", "--name", "one", "--cpu-hours", "0.008")
    assert ended.returncode == 0, ended.stderr
    assert "as many trials as fit into 0.008 CPU hours, at most 1000" in ended.stdout
    assert "best so far trial-" in ended.stdout
    assert 1 <= len(result_of(storage_of(settings))["trials"]) < 1_000
    refused = training_here(settings, "tune", "--minutes", "0")
    assert (refused.returncode, "must be above 0" in refused.stderr) == (2, True)
    refused = training_here(settings, "tune", "--resume", "one", "--trials", "0")
    assert (refused.returncode, "must be at least 1" in refused.stderr) == (2, True)


def test_a_budget_that_is_used_up_before_a_trial_begins_leaves_what_words_say_and_what_was_done(attached: Callable[..., Path]) -> None:
    settings = attached(tuning=ONE_BY_ONE | {"confirm_top": 0})
    # Used up before anything is encoded.
    ended = training_here(settings, "tune", "--name", "one", "--cpu-hours", "1e-9")
    assert ended.returncode == 0, ended.stderr
    assert "the budget is used up before a trial could begin" in ended.stdout
    result = result_of(storage_of(settings))
    assert [trial["origin"] for trial in result["trials"]] == ["words alone"]
    assert "no training has come to a score" in result["headline"]
    assert "test" in result["metrics"]
    assert training_here(settings, "publish").returncode == 0
    went_on = training_here(settings, "tune", "--resume", "one", "--trials", "1", "--cpu-hours", "1")
    assert went_on.returncode == 0, went_on.stderr
    assert "default" in {trial["origin"] for trial in result_of(storage_of(settings))["trials"]}
