"""cluster.runtime_env: what travels with a job."""

from pathlib import Path

import pytest

from cluster import runtime_env as module
from cluster.errors import ClusterError
from cluster.runtime_env import Shipment, runtime_env, shown_bytes, survey
from cluster.settings import ClusterSettings


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_ignored_and_excluded_files_stay(tmp_path: Path) -> None:
    _fill(
        tmp_path, "training/fit.py", "ray_config.yaml", ".git/config", ".venv/bin/python", "venv/x", ".twohead/1",
        "training/__pycache__/a.pyc", ".mypy_cache/a", "ads.csv", "deep/ads.csv", "deep/keep.csv",
    )  # fmt: skip
    (tmp_path / ".gitignore").write_text("/ads.csv\n")
    (tmp_path / "deep/.gitignore").write_text("ads.csv\n")
    shipment = survey(ClusterSettings(), tmp_path)
    assert sorted(shipment.sizes) == [".gitignore", "deep/.gitignore", "deep/keep.csv", "ray_config.yaml", "training/fit.py"]
    assert shipment.total_bytes == sum((tmp_path / name).stat().st_size for name in shipment.sizes)


def test_private_keys_and_secrets_stay(tmp_path: Path) -> None:
    _fill(tmp_path, "signing.pem", "deep/door.key", ".env", "deep/.env.local", "key.py", "environment.yaml", "deep/pem.txt")
    assert sorted(survey(ClusterSettings(), tmp_path).sizes) == ["deep/pem.txt", "environment.yaml", "key.py"]


def test_exclude_is_the_only_truth_about_what_stays(tmp_path: Path) -> None:
    _fill(tmp_path, "venv/x", "notes/y")
    assert sorted(survey(ClusterSettings(exclude=("notes",)), tmp_path).sizes) == ["venv/x"]


def test_the_survey_agrees_with_what_ray_packs(tmp_path: Path) -> None:
    from zipfile import ZipFile

    from ray._private.runtime_env.packaging import create_package

    settings = ClusterSettings()
    folder = tmp_path / "work"
    _fill(folder, "a.py", "b/c.txt", ".git/x", "out/model.bin")
    (folder / ".rayignore").write_text("out/\n")
    create_package(str(folder), tmp_path / "packed.zip", include_gitignore=True, excludes=list(settings.exclude))
    assert (
        sorted(ZipFile(tmp_path / "packed.zip").namelist()) == sorted(survey(settings, folder).sizes) == [".rayignore", "a.py", "b/c.txt"]
    )


def test_too_much_is_refused_by_its_biggest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 4096)
    for number in range(7):
        (tmp_path / f"file{number}").write_bytes(b"x" * 1024 * number)
    with pytest.raises(ClusterError) as raised:
        survey(ClusterSettings(), tmp_path)
    assert raised.value.message == (
        f"{tmp_path}: holds 21.0 KiB to ship, but at most 4.0 KiB may travel; the biggest files are "
        "file6 (6.0 KiB), file5 (5.0 KiB), file4 (4.0 KiB), file3 (3.0 KiB), file2 (2.0 KiB)"
    )
    assert raised.value.hint == "add them to .gitignore or to cluster.exclude, and keep data where every machine can read it"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as raised:
        survey(ClusterSettings(), tmp_path / "none")
    assert raised.value.message == f"{tmp_path}/none: no such folder"
    assert raised.value.hint == "name the folder to ship with --working-dir"


def test_a_job_gets_the_absolute_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = runtime_env(ClusterSettings(storage="here"), Shipment(tmp_path, {}))
    assert environment["working_dir"] == str(tmp_path)
    assert environment["env_vars"]["TWOHEAD_STORAGE"] == f"{tmp_path}/here"
    assert environment["env_vars"]["PYTHONUNBUFFERED"] == "1"
    # What reserves no GPU sees none, on a Ray that others started too.
    assert environment["env_vars"]["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    assert runtime_env(ClusterSettings(storage="memory://b/p"), Shipment(tmp_path, {}))["env_vars"]["TWOHEAD_STORAGE"] == "memory://b/p"


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (100 * 1024**2, "100.0 MiB"), (3 * 1024**3, "3.0 GiB")]
)
def test_sizes_for_people(size: int, shown: str) -> None:
    assert shown_bytes(size) == shown
