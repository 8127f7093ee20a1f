"""Where data may come from, and what a folder that was sent may write."""

import socket
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import SettingsError, TwoheadError
from cluster.runtime_env import Shipment, runtime_env
from cluster.settings import ClusterSettings, validate_section
from cluster.uris import STORES, password_fault, source_fault
from serving.errors import ScoringError
from serving.scoring.files import find_files
from training.data.table import read_table
from training.data_settings import DataSettings
from training.errors import DataError
from training.fit_settings import EncoderSettings
from training.network.encoder import find_encoder

METADATA = "169.254.169.254/latest/meta-data/iam/credentials.csv"


@pytest.fixture
def nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks for a name or opens a connection fails the test, also where the error is caught."""
    called: list[object] = []

    def refuse(*arguments: object, **named: object) -> None:
        called.append(arguments)
        raise OSError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert called == []


@pytest.mark.parametrize(
    "uri",
    [
        *(f"{protocol}://{METADATA}" for protocol in ("http", "https", "HTTP", "ftp", "webhdfs", "github", "jar", "dask")),
        *(f"{before}::http://{METADATA}" for before in ("simplecache", "filecache", "zip://a.csv")),
    ],
)
@pytest.mark.usefixtures("nobody_is_called")
def test_g17_no_web_address_is_read_from(uri: str) -> None:
    with pytest.raises(DataError, match="is not read from; data comes from local files or one of"):
        read_table(uri, DataSettings(), ["text"])
    with pytest.raises(ScoringError, match="is not read from"):
        find_files(uri)


@pytest.mark.parametrize("name", [f"http://{METADATA}", f"package:http://{METADATA}", f"//{METADATA}"])
@pytest.mark.usefixtures("nobody_is_called")
def test_g17_no_encoder_comes_from_a_web_address(name: str) -> None:
    with pytest.raises(TwoheadError):
        find_encoder(EncoderSettings(name=name))


def test_g17_local_files_and_stores_are_read_from() -> None:
    assert [source_fault(uri) for uri in ["ads.csv", "/a/b.csv", "C:/ads.csv", *(f"{store}://a/b.csv" for store in STORES)]] == [None] * (
        3 + len(STORES)
    )


@pytest.mark.parametrize(
    "uri", ["s3://key:hunter2@bucket/x.csv", "sftp://me:hunter2@host/x.csv", "simplecache::s3://key:hunter2@bucket/x.csv"]
)
def test_g15_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    for refuse in (lambda: read_table(uri, DataSettings(), ["text"]), lambda: find_files(uri)):
        with pytest.raises(TwoheadError, match="holds a password") as caught:
            refuse()
        assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(SettingsError, match=r"cluster.storage holds a password, .*; fsspec finds secrets in its own files") as settings:
        validate_section(ClusterSettings, {"cluster": {"storage": uri}}, "cluster")
    assert "hunter2" not in str(settings.value)


@pytest.mark.parametrize("uri", ["s3://bucket/a:b@c", "abfss://container@account.dfs.core.windows.net/x", "a:b@c.csv"])
def test_g15_what_only_looks_like_a_password_is_none(uri: str) -> None:
    assert password_fault(uri) is None


def test_g15_a_job_takes_no_variables_along_but_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    assert "hunter2" not in str(runtime_env(ClusterSettings(storage=str(tmp_path)), Shipment(tmp_path, {}), "job-1"))


@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "{outside}/evil.py"])
def test_g11_an_archive_writes_nothing_beside_its_folder(name: str, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import unzip_package

    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr(name.format(outside=tmp_path), "print('out')")
        archive.writestr("good.py", "print('in')")
    (tmp_path / "sent").mkdir()
    unzip_package(str(tmp_path / "code.zip"), str(tmp_path / "sent" / "code"), remove_top_level_directory=False, unlink_zip=True)
    assert list(tmp_path.rglob("*.py")) == [tmp_path / "sent" / "code" / "good.py"]


def test_g11_a_link_in_an_archive_leads_nowhere(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import unzip_package

    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "outside"))
        archive.writestr("link/evil.py", "print('out')")
    (tmp_path / "outside").mkdir()
    # A file is where the folder would be: the archive as a whole is refused.
    with pytest.raises(OSError, match="code/link"):
        unzip_package(str(tmp_path / "code.zip"), str(tmp_path / "code"), remove_top_level_directory=False, unlink_zip=True)
    assert not list((tmp_path / "outside").iterdir())
    assert not (tmp_path / "code" / "link").is_symlink()
