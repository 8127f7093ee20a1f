import importlib
from typing import Any

import pytest

from serving import app
from serving.app import code_digest, render, replica_environment
from serving.settings import Arguments, ServingSettings


def rendered(**settings: Any) -> dict[str, Any]:
    checked = ServingSettings(**settings)
    return render(checked, Arguments(storage="/registry", settings=checked), {"working_dir": "local:///code"})


def unknown_keys(schema: Any, tree: dict[str, Any]) -> list[str]:
    return [key for key in tree if key not in schema.model_fields]


# Ray 2.60's own models do the first; the second is about a key without which it scales only every 10 s.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field in AutoscalingConfig is deprecated:DeprecationWarning")
def test_serve_knows_every_key_we_write() -> None:
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    config = rendered()
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    for schema, tree in (
        (ServeDeploySchema, config),
        (HTTPOptionsSchema, config["http_options"]),
        (ServeApplicationSchema, application),
        (DeploymentSchema, deployment),
        (AutoscalingConfig, deployment["autoscaling_config"]),
        (RequestRouterConfig, deployment["request_router_config"]),
        (RayActorOptionsSchema, deployment["ray_actor_options"]),
    ):
        assert unknown_keys(schema, tree) == []


def test_settings_reach_serve() -> None:
    config = rendered(port=8123, min_replicas=2, max_replicas=5, max_ongoing_requests=77, resources_per_replica={"cpu": 0.5, "gpu": 1})
    (deployment,) = config["applications"][0]["deployments"]
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8123}
    assert deployment["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1}
    assert deployment["max_ongoing_requests"] == 77
    assert deployment["max_surge_percent"] == 100
    assert (deployment["autoscaling_config"]["min_replicas"], deployment["autoscaling_config"]["max_replicas"]) == (2, 5)


def test_our_policy_decides_and_holds_itself_unless_serves_own_is_chosen() -> None:
    def scaling(**settings: Any) -> dict[str, Any]:
        (deployment,) = rendered(**settings)["applications"][0]["deployments"]
        found: dict[str, Any] = deployment["autoscaling_config"]
        return found

    ours = scaling(autoscaling={"target_p95_ms": 300, "downscale_delay_s": 77, "idle_s": 9})
    assert ours["policy"]["policy_kwargs"] == {"target_p95_ms": 300.0, "hold_s": 77.0, "idle_s": 9.0}
    assert (ours["upscale_delay_s"], ours["downscale_delay_s"], ours["downscale_to_zero_delay_s"]) == (0.0, 0.0, 0.0)
    module, _, name = ours["policy"]["policy_function"].partition(":")
    assert getattr(importlib.import_module(module), name)(**ours["policy"]["policy_kwargs"])
    serves = scaling(autoscaling={"policy": "requests", "downscale_delay_s": 77, "idle_s": 9})
    assert "policy" not in serves
    assert (serves["downscale_delay_s"], serves["downscale_to_zero_delay_s"]) == (77.0, 9.0)


@pytest.mark.parametrize(("minimum", "first"), [(0, 1), (1, None), (3, None)])
def test_a_deployment_begins_with_a_replica_that_shows_that_it_answers(minimum: int, first: int | None) -> None:
    (deployment,) = rendered(min_replicas=minimum, max_replicas=5)["applications"][0]["deployments"]
    assert deployment["autoscaling_config"].get("initial_replicas") == first


def test_nothing_logs_requests() -> None:
    config = rendered()
    assert config["logging_config"] == config["applications"][0]["logging_config"] == {"enable_access_log": False}


@pytest.mark.parametrize("change", [{"max_replicas": 9}, {"min_replicas": 2}, {"port": 1234}, {"autoscaling": {"upscale_delay_s": 1}}])
def test_what_only_the_rollout_reads_does_not_restart_replicas(change: dict[str, Any]) -> None:
    assert rendered(**change)["applications"][0]["args"] == rendered()["applications"][0]["args"]


@pytest.mark.parametrize("change", [{"batch_tokens": 99}, {"name": "other"}, {"max_texts": 3}, {"threads": 2}])
def test_what_replicas_read_reaches_them(change: dict[str, Any]) -> None:
    arguments = Arguments.model_validate(rendered(**change)["applications"][0]["args"])
    (name, value) = next(iter(change.items()))
    assert getattr(arguments.settings, name) == value


def test_a_replica_computes_with_as_many_threads_as_set() -> None:
    environment = replica_environment(ServingSettings(threads=3))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["TWOHEAD_CODE"] == code_digest()


def test_changed_code_has_another_digest(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cluster", "training", "serving"):
        (tmp_path / package).mkdir()
    monkeypatch.setattr(app, "CODE_ROOT", tmp_path)
    before = code_digest()
    (tmp_path / "serving" / "new.py").write_text("", encoding="utf-8")
    (tmp_path / "serving" / "new.pyc").write_text("", encoding="utf-8")
    after = code_digest()
    (tmp_path / "serving" / "new.pyc").unlink()
    assert before != after == code_digest()
