"""cluster.settings: reading ray_config.yaml, overriding and validating it."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError, model_validator

from cluster.errors import SettingsError
from cluster.settings import (
    STORAGE_VARIABLE,
    ClusterSettings,
    Section,
    load_settings,
    parse_yaml,
    read_settings_file,
    validate_section,
)


class Inner(Section):
    rate: float = 0.1
    count: int = Field(default=1, ge=1)


class Outer(Section):
    name: str
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _agree(self) -> "Outer":
        if self.inner.count > 10:
            raise ValueError(f"inner.count is {self.inner.count}, but must be at most 10 for {self.name}")
        return self


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a settings file, and stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)

    def _write(text: str | bytes) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("0e0", 0.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0.5", -0.5),
        ("+7", 7),
        ("-3", -3),
        ("0", 0),
        ("1_000", 1000),
        ("0x1f", 31),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        # YAML 1.1 would make these false, a date, 72, 8.0 and 630.
        ("no", "no"),
        ("on", "on"),
        ("2026-01-01", "2026-01-01"),
        ("0110", "0110"),
        ("08", "08"),
        ("10:30", "10:30"),
        ("3e", "3e"),
        ("12abc", "12abc"),
    ],
)
def test_scalars_are_yaml_1_2(scalar: str, value: object) -> None:
    found = parse_yaml(f"a: {scalar}", "file")["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_mapping_can_be_merged_into_others() -> None:
    found = parse_yaml("a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, z: 3}", "file")
    assert found["c"] == {"x": 1, "y": 2, "z": 3}


def test_a_key_may_not_stand_twice() -> None:
    with pytest.raises(SettingsError) as raised:
        parse_yaml("a: 1\nb:\n  c: 2\n  d: 3\n  c: 4\n", "file.yaml")
    assert raised.value.message == "file.yaml: line 5: the key 'c' stands twice"
    assert raised.value.hint == "keep one of the two"


@pytest.mark.parametrize("text", ["a: [1", "a: !!python/object/apply:os.getcwd []", "? [1]\n: 2", "a: '\0'", "a: !!int x", "\t"])
def test_what_is_not_safe_yaml_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^file\.yaml: not valid YAML: \S") as raised:
        parse_yaml(text, "file.yaml")
    assert "\n" not in raised.value.message


def test_yaml_nested_too_deep_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^file\.yaml: not valid YAML: maximum recursion depth"):
        parse_yaml("[" * 5000, "file.yaml")


def test_the_default_file_may_be_missing(write: Any) -> None:
    assert read_settings_file() == {}
    assert load_settings() == ClusterSettings()


def test_a_named_file_must_exist(write: Any) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings_file(Path("mine.yaml"))
    assert (raised.value.message, raised.value.hint) == ("mine.yaml: no such file", "name the settings file with --config")


def test_a_file_that_cannot_be_read_is_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Is a directory"):
        read_settings_file(tmp_path)
    with pytest.raises(SettingsError, match="can't decode byte 0xfc"):
        read_settings_file(write("cluster: {storage: 'B\xfc'}".encode("latin-1")))


def test_empty_sections_are_empty_mappings(write: Any) -> None:
    assert read_settings_file(write("cluster:\ntraining: {a: 1}\n")) == {"cluster": {}, "training": {"a": 1}}
    assert read_settings_file(write("")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "is a list, but must be a mapping with the sections cluster, training, serving"),
        ("clutser: {}", "section 'clutser' is unknown, but must be one of cluster, training, serving"),
        ("cluster: 3", "cluster is 3, but must be a mapping"),
    ],
)
def test_a_file_has_only_the_three_sections(write: Any, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as raised:
        read_settings_file(path)
    assert raised.value.message == f"{path}: {message}"


def test_overrides_are_yaml_and_make_what_is_missing(write: Any) -> None:
    path = write("training: {tuning: {num_samples: 8, keep: yes}}")
    tree = read_settings_file(
        path, ["training.tuning.num_samples=40", "training.fit.rate=1e-5", "serving.names=[a, b]", "cluster.storage=s3://b/p=1"]
    )
    assert tree["training"] == {"tuning": {"num_samples": 40, "keep": "yes"}, "fit": {"rate": 1e-5}}
    assert tree["serving"] == {"names": ["a", "b"]}
    assert tree["cluster"] == {"storage": "s3://b/p=1"}


@pytest.mark.parametrize("override", ["training.tuning", "num_samples=3", "train.tuning=3", "=3", "cluster=3"])
def test_an_override_names_section_key_and_value(write: Any, override: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings_file(write(""), [override])
    assert raised.value.message == f"--set {override}: must look like section.key=value, with a section of cluster, training, serving"
    assert raised.value.hint == "for example --set training.tuning.num_samples=40"


def test_an_override_cannot_go_below_a_value(write: Any) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings_file(write("training: {tuning: 3}"), ["training.tuning.num_samples=40"])
    assert raised.value.message == "--set training.tuning.num_samples=40: training.tuning is 3 and has no keys"


def test_an_override_that_is_no_yaml_is_named(write: Any) -> None:
    with pytest.raises(SettingsError, match=re.escape("--set training.a: not valid YAML")):
        read_settings_file(write(""), ["training.a=[1"])


def test_a_job_keeps_the_storage_it_was_submitted_with(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, "/far/away")
    assert load_settings(write("cluster: {storage: here}")).storage == "/far/away"
    assert load_settings(write("")).storage == "/far/away"
    assert load_settings(write("cluster: {storage: here}"), ["cluster.num_cpus=2"]).storage == "/far/away"


def test_a_jobs_own_storage_wins_over_that_of_its_submission(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, "/far/away")
    assert load_settings(write("cluster: {storage: here}"), ["cluster.storage=s3://bucket/mine"]).storage == "s3://bucket/mine"


@pytest.mark.parametrize("own", ["mine", "./mine", "../mine", ".twohead"])
def test_a_job_writes_nothing_into_its_copy_of_the_working_folder(write: Any, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    file, override = write(""), f"cluster.storage={own}"
    assert load_settings(file, [override]).storage == own
    monkeypatch.setenv(STORAGE_VARIABLE, "/far/away")
    with pytest.raises(SettingsError) as raised:
        load_settings(file, [override])
    assert raised.value.message.startswith(f"--set {override}: is relative, but a job runs in a copy of the working directory")
    assert raised.value.hint == "give an absolute path or a URI"


@pytest.mark.parametrize("own", ["/a", "~/x", "s3://bucket/mine", "file:///a", "/far/away"])
def test_a_job_may_name_what_stays(write: Any, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, "/far/away")
    assert load_settings(write(""), [f"cluster.storage={own}"]).storage == own


def test_validation_lists_every_finding_by_its_dotted_key() -> None:
    tree = {"training": {"inner": {"rate": "fast", "count": 0, "cuont": 2}, "other": 1}}
    with pytest.raises(SettingsError) as raised:
        validate_section(Outer, tree, "training", "my.yaml")
    assert sorted(line.strip() for line in raised.value.message.splitlines()) == [
        "my.yaml: training.inner.count is 0, but must be greater than or equal to 1",
        "my.yaml: training.inner.cuont is not a setting",
        'my.yaml: training.inner.rate is "fast", but must be a valid number, unable to parse string as a number',
        "my.yaml: training.name is missing",
        "my.yaml: training.other is not a setting",
    ]
    assert raised.value.hint == "docs/settings.md names them all"


def test_a_validator_over_several_keys_speaks_for_itself() -> None:
    with pytest.raises(SettingsError) as raised:
        validate_section(Outer, {"training": {"name": "x", "inner": {"count": 11}}}, "training", "my.yaml")
    assert raised.value.message == "my.yaml: training: inner.count is 11, but must be at most 10 for x"


def test_infinite_numbers_are_refused_without_showing_them() -> None:
    with pytest.raises(SettingsError) as raised:
        validate_section(Inner, {"training": {"rate": float("inf")}}, "training", "my.yaml")
    assert raised.value.message == "my.yaml: training.rate is float, but must be a finite number"


def test_a_section_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(SettingsError) as raised:
        validate_section(Outer, {"training": {"name": "x", "inner": [1]}}, "training", "my.yaml")
    assert raised.value.message == "my.yaml: training.inner is list, but must be a valid dictionary or instance of Inner"


def test_a_section_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ClusterSettings().storage = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("address", ["local", "http://head:8265", "https://ray.example.com"])
def test_addresses(address: str) -> None:
    settings = ClusterSettings(address=address)
    assert settings.is_local is (address == "local")


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://head:8265/", "auto"])
def test_an_address_is_local_or_a_dashboard(address: str) -> None:
    with pytest.raises(SettingsError) as raised:
        validate_section(ClusterSettings, {"cluster": {"address": address}}, "cluster", "my.yaml")
    assert raised.value.message == (
        f"my.yaml: cluster.address is \"{address}\", but must be 'local' or the dashboard's address, like http://head:8265"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("num_cpus", 0), ("num_gpus", -1), ("dashboard_port", 0), ("dashboard_port", 65536), ("object_store_bytes", 1)]
)
def test_numbers_have_bounds(key: str, value: int) -> None:
    with pytest.raises(SettingsError, match=rf"^my\.yaml: cluster\.{key} is {value}, but must be "):
        validate_section(ClusterSettings, {"cluster": {key: value}}, "cluster", "my.yaml")
