"""A search as it was begun: its name, its pinned settings, and where its files are.

    searches/NAME/search.json    the settings and the data's digest, pinned when the search began
    searches/NAME/tune/          Ray Tune's own state, for --resume
    searches/NAME/best/          the best checkpoint
    searches/NAME/result.json    what was found
    searches/NAME/report.html    the same, for people

It does not know how a search is made.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster.errors import ConflictError
from cluster.storage import Storage
from training.errors import TuningError
from training.settings import TrainingSettings

LATEST = "latest"
TUNE_FOLDER = "tune"
BEST_FOLDER = "best"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
_SEARCHES = "searches"
_PLAN_FILE = "search.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Plan:
    """What `--resume` goes on with.

    Attributes:
        name: Of the search.
        settings: The section `training`.
        data_digest: SHA-256 of the data.
    """

    name: str
    settings: TrainingSettings
    data_digest: str


def search_path(name: str, file: str = "") -> str:
    """Return the path of a search's folder, or of something in it, in its storage."""
    return f"{_SEARCHES}/{name}/{file}".rstrip("/")


def default_name(settings: TrainingSettings) -> str:
    """Name a search after its heads and the time."""
    return f"{'-'.join(settings.heads)[:40]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def check_name(name: str) -> None:
    """Refuse a name that could not be a folder's, or that `--resume` reads as something else.

    Raises:
        TuningError: It is not allowed.
    """
    if not _NAME.fullmatch(name) or name == LATEST:
        raise TuningError(
            f"--name is {name!r}, but must be at most 80 letters, digits, dots, dashes and underscores, starting with a letter or digit, "
            f"and not {LATEST!r}"
        )


def pin(storage: Storage, plan: Plan) -> None:
    """Write a new search down; of two with the same name exactly one begins.

    Raises:
        TuningError: There is a search of that name.
    """
    facts = {
        "name": plan.name,
        "begun": datetime.now(UTC).isoformat(),
        "data_digest": plan.data_digest,
        "settings": plan.settings.model_dump(mode="json"),
    }
    try:
        storage.create(search_path(plan.name, _PLAN_FILE), json.dumps(facts, indent=2).encode())
    except ConflictError:
        raise TuningError(
            f"search {plan.name!r} exists already", f"choose another --name, or go on with it: --resume {plan.name}"
        ) from None


def read_plan(storage: Storage, name: str) -> Plan:
    """Read how a search began; `latest` is the one begun last.

    Raises:
        TuningError: There is no such search.
    """
    names = [found for found in storage.names(_SEARCHES) if storage.exists(search_path(found, _PLAN_FILE))]
    if not names:
        raise TuningError(f"there is no search in {storage.uri} yet", "python -m training tune")
    if name != LATEST and name not in names:
        raise TuningError(f"search {name!r} is not in {storage.uri}; searches: {', '.join(names)}")
    facts = {found: json.loads(storage.read_bytes(search_path(found, _PLAN_FILE))) for found in (names if name == LATEST else [name])}
    chosen = max(facts, key=lambda found: str(facts[found]["begun"]))
    return Plan(chosen, TrainingSettings.model_validate(facts[chosen]["settings"]), facts[chosen]["data_digest"])
