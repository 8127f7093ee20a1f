"""cluster.machines.launcher_file: what Ray's validator refuses, what it lets through and we do not, and the examples that are shipped."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster.errors import SettingsError
from cluster.machines.launcher_file import check_launcher as check_settings
from cluster.settings import ClusterSettings, load_settings

EXAMPLES = sorted((Path(cluster.__file__).parent / "examples").glob("*.yaml"))
LOCAL: dict[str, Any] = {
    "cluster_name": "ads",
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]},
    "auth": {"ssh_user": "ray"},
}
CLOUD = {
    "provider": {"type": "aws", "region": "eu-central-1"},
    "available_node_types": {
        "head": {"resources": {}, "node_config": {}},
        "gpu": {"resources": {}, "node_config": {}, "min_workers": 1, "max_workers": 4},
    },
    "head_node_type": "head",
    "max_workers": 4,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's folder with a key, and a project to stand in."""
    for name in (".ssh/id_ed25519", "requirements.lock"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_launcher(launcher: dict[str, Any]) -> dict[str, Any]:
    return check_settings(ClusterSettings(launcher=launcher))


def findings(**change: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        check_launcher(LOCAL | change)
    return raised.value.message


def test_a_good_launcher_configuration_passes_and_is_not_changed() -> None:
    launcher = copy.deepcopy(LOCAL)
    check_launcher(launcher)
    assert launcher == LOCAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provider": {"type": "cloudy"}}, "cluster.launcher: Unsupported node provider: cloudy"),
        ({"provider": {"type": "external"}}, "cluster.launcher: the key 'head_setup_commands' is missing"),
        ({"provider": {"type": "local"}}, "cluster.launcher: Please supply a `head_ip` and list of `worker_ips`. "
            "Alternatively, supply a `coordinator_address`."),
        ({"provider": 3}, "cluster.launcher.provider: 3 is not of type 'object'"),
        (
            {"max_wokers": 2, "max_workers": "3", "auth": {"ssh_usr": "x"}},
            "cluster.launcher: Additional properties are not allowed ('max_wokers' was unexpected)\n"
            "       cluster.launcher.auth: Additional properties are not allowed ('ssh_usr' was unexpected)\n"
            "       cluster.launcher.max_workers: '3' is not of type 'integer'",
        ),
    ],
)  # fmt: skip
def test_a_bad_launcher_configuration_is_refused_by_ray(change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        check_launcher({**LOCAL, **change})
    assert raised.value.message == message
    assert raised.value.hint == "these are Ray's own keys: see the cluster YAML reference of Ray"
    assert capsys.readouterr() == ("", "")


def test_what_no_provider_reads_is_named() -> None:
    found = findings(provider=LOCAL["provider"] | {"hed_ip": "10.0.0.1"})
    assert found.startswith("cluster.launcher.provider.hed_ip is not read by provider local, which reads external_head_ip, ")
    lent = findings(provider=LOCAL["provider"] | {"coordinator_address": "10.0.0.9:9000"}, max_workers=2)
    assert lent.startswith("cluster.launcher.provider.coordinator_address: hosts that a coordinator lends are not supported")
    assert "provider.zone is not read by provider aws" in findings(**CLOUD | {"provider": CLOUD["provider"] | {"zone": "a"}})
    check_launcher(LOCAL | CLOUD)


def test_files_that_are_not_there_are_named(home: Path) -> None:
    found = findings(auth={"ssh_user": "ray", "ssh_private_key": "~/.ssh/nope"}, file_mounts={"~/table.csv": str(home / "none.csv")})
    assert "cluster.launcher.auth.ssh_private_key is ~/.ssh/nope, but there is no such file" in found
    assert f"cluster.launcher.file_mounts: ~/table.csv comes from {home}/none.csv, which is not there" in found


@pytest.mark.parametrize(("fewest", "own", "most"), [(3, 2, 9), (3, 4, 2)])
def test_more_wanted_than_allowed_is_refused(fewest: int, own: int, most: int) -> None:
    kinds = {"head": {"resources": {}, "node_config": {}}}
    kinds["gpu"] = {"resources": {}, "node_config": {}, "min_workers": fewest, "max_workers": own}
    found = findings(**CLOUD | {"available_node_types": kinds, "max_workers": most})
    assert re.search(r"min_workers|max_workers", found)


def test_more_hosts_wanted_than_allowed_is_refused() -> None:
    provider = LOCAL["provider"] | {"worker_ips": ["10.0.0.2", "10.0.0.3", "10.0.0.4"]}
    check_launcher(LOCAL | {"provider": provider, "max_workers": 3})
    assert re.search(r"max_workers", findings(provider=provider, max_workers=2))


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
@pytest.mark.parametrize("commands", [["ray stop"], ["./start.sh"], ["RAY_AUTH_MODE=disabled ray start --head"]])
def test_a_start_that_cannot_be_made_to_want_the_token_is_refused(key: str, commands: list[str]) -> None:
    assert f"cluster.launcher.{key} must start Ray with RAY_AUTH_MODE=token" in findings(**{key: commands})


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.__main__ import main

    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out.endswith("the section cluster is fine\n")


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "on_premise"], ids=lambda path: path.stem)
def test_clouds_have_a_head_without_work_trials_that_may_go_and_replicas_that_stay(path: Path) -> None:
    launcher = load_settings(path, []).launcher
    assert launcher is not None
    kinds = launcher["available_node_types"]
    assert (kinds["head"]["resources"], kinds["head"]["max_workers"]) == ({"CPU": 0}, 0)
    assert (kinds["trials"]["min_workers"], kinds["replicas"]["min_workers"]) == (0, 1)
    assert re.search("spot", str(kinds["trials"]["node_config"]), re.IGNORECASE)
    assert not re.search("spot", str(kinds["replicas"]["node_config"]), re.IGNORECASE)


def test_there_is_an_example_for_each() -> None:
    assert [path.stem for path in EXAMPLES] == ["aws", "gcp", "on_premise"]


def test_the_home_of_nobody_is_no_place() -> None:
    found = findings(auth={"ssh_user": "ray", "ssh_private_key": "~no-such-person/key"}, file_mounts={"~/x": "~no-such-person/x"})
    assert found.splitlines() == [
        "cluster.launcher.auth.ssh_private_key is ~no-such-person/key, but there is no such file",
        "       cluster.launcher.file_mounts: ~/x comes from ~no-such-person/x, which is not there",
    ]
