from pathlib import Path

import pytest

from cluster.errors import SettingsError
from cluster.settings import validate_section
from serving.settings import ServingSettings, load_settings


def message(**section: object) -> str:
    with pytest.raises(SettingsError) as caught:
        validate_section(ServingSettings, {"serving": section}, "serving")
    return caught.value.message


def test_defaults_are_valid() -> None:
    settings = validate_section(ServingSettings, {}, "serving")
    assert settings.url == "http://127.0.0.1:8000"
    assert settings.min_replicas <= settings.max_replicas


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"max_replicas": 0}, "ray_config.yaml: serving.max_replicas is 0, but must be at least serving.min_replicas (1)"),
        ({"min_replicas": 3}, "ray_config.yaml: serving.max_replicas is 2, but must be at least serving.min_replicas (3)"),
        ({"max_replica": 3}, "ray_config.yaml: serving.max_replica is not a setting"),
        ({"autoscaling": {"upscale_delay": 3}}, "ray_config.yaml: serving.autoscaling.upscale_delay is not a setting"),
        (
            {"autoscaling": {"look_back_period_s": 0.5}},
            "ray_config.yaml: serving.autoscaling.look_back_period_s is 0.5, but must be above serving.autoscaling.metrics_interval_s (1)",
        ),
        (
            {"host": "0.0.0.0"},
            'ray_config.yaml: serving.host is "0.0.0.0", but must be a loopback address like 127.0.0.1 unless serving.require_keys is true',
        ),
    ],
)
def test_messages(section: dict[str, object], expected: str) -> None:
    assert message(**section) == expected


def test_every_finding_is_listed() -> None:
    found = message(port=0, batch_tokens=1)
    assert "serving.port is 0" in found
    assert "serving.batch_tokens is 1" in found


@pytest.mark.parametrize(
    ("host", "url"), [("::1", "http://[::1]:8000"), ("localhost", "http://localhost:8000"), ("127.0.0.2", "http://127.0.0.2:8000")]
)
def test_loopback_hosts(host: str, url: str) -> None:
    assert ServingSettings(host=host).url == url


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "ray_config.yaml"
    file.write_text("serving: {port: 9001}\n", encoding="utf-8")
    settings = load_settings(file, ["serving.max_replicas=8"])
    assert (settings.port, settings.max_replicas) == (9001, 8)
