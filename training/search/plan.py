"""A search as it was begun: its name, its pinned settings, and where its files are.

    searches/NAME/search.json    the settings and the data's digest, pinned when the search began
    searches/NAME/ledger/        what happened, event by event; what --resume reads
    searches/NAME/jobs/ID        the jobs of the cluster that worked on it
    searches/NAME/tune-0/        the trials' checkpoints, a folder for each time the search was begun or resumed
    searches/NAME/study.log      Optuna's study, for optuna-dashboard (local storage only)
    searches/NAME/best/          the best checkpoint
    searches/NAME/result.json    what was found
    searches/NAME/report.html    the same, for people

It does not know how a search is made.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from cluster.errors import ConflictError, StorageError
from cluster.searches import JOBS_FOLDER
from cluster.settings import JOB_VARIABLE
from cluster.storage import Storage
from training.errors import TuningError
from training.search.proposing.search_space import Point
from training.settings import TrainingSettings

LATEST = "latest"
LEDGER_FOLDER = "ledger"
STUDY_FILE = "study.log"
BEST_FOLDER = "best"
RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
_SEARCHES = "searches"
_PLAN_FILE = "search.json"
_COPY = f"{LEDGER_FOLDER}/000000.json"
_ATTEMPT = "tune-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Start:
    """The earlier version a search starts from.

    Attributes:
        version: Its number.
        point: Its configuration, moved into the search space.
        weights: Its folder in the storage, if trials start from its weights too; else "".
        data_digest: SHA-256 of the data it was made from.
        weights_sha256: Of its weights, if trials start from them.
        config_sha256: Of its configuration, likewise.
        trial: Name of the training that its weights come from; "" where that is not known.
    """

    version: int
    point: Point
    weights: str
    data_digest: str = ""
    weights_sha256: str = ""
    config_sha256: str = ""
    trial: str = ""


@dataclass(frozen=True)
class Plan:
    """What `--resume` goes on with.

    Attributes:
        name: Of the search.
        settings: The section `training`.
        data_digest: SHA-256 of the data.
        begun: When, ISO 8601 in UTC.
        start: The earlier version it starts from, if any.
    """

    name: str
    settings: TrainingSettings
    data_digest: str
    begun: str = ""
    start: Start | None = None


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


def pin(storage: Storage, plan: Plan) -> Plan:
    """Write a new search down; of two with the same name exactly one begins.

    Returns:
        The plan, with when it began.

    Raises:
        TuningError: There is a search of that name.
    """
    begun = datetime.now(UTC).isoformat()
    facts = {
        "name": plan.name,
        "begun": begun,
        "data_digest": plan.data_digest,
        "settings": plan.settings.model_dump(mode="json"),
        "start": asdict(plan.start) if plan.start else None,
    }
    path, copy = search_path(plan.name, _PLAN_FILE), search_path(plan.name, _COPY)
    try:
        # Where one of the two was lost, a new one would give another search's settings to what the other began.
        if storage.exists(path):
            raise ConflictError(f"{storage.uri}/{path}: exists already")
        # Of two copies, should one be damaged, the ledger's first: no event of a search that was ended here may take its place.
        written = {copy: storage.claim(copy, {"kind": "begun", **facts})}
        written[path] = storage.claim(path, facts, indent=2)
        if not all(storage.holds(file, content) for file, content in written.items()):
            # In a store that minds no condition another search's may have come after it.
            raise ConflictError(f"{storage.uri}/{path}: was taken by another search")
    except ConflictError:
        raise TuningError(
            f"search {plan.name!r} exists already", f"choose another --name, or go on with it: --resume {plan.name}"
        ) from None
    return replace(plan, begun=begun)


def note_job(storage: Storage, name: str) -> None:
    """Write down that the job this process belongs to, if it does, works on a search."""
    if job := os.environ.get(JOB_VARIABLE):
        storage.write_bytes(search_path(name, f"{JOBS_FOLDER}/{job}"), b"")


def read_plan(storage: Storage, name: str) -> Plan:
    """Read how a search began; `latest` is the one begun last.

    Raises:
        TuningError: There is no such search, or both files that say how it began are damaged.
    """
    names = storage.names(_SEARCHES)
    if not names:
        raise TuningError(f"there is no search in {storage.uri} yet", "python -m training tune")
    if name != LATEST and name not in names:
        raise TuningError(f"search {name!r} is not in {storage.uri}; searches: {', '.join(names)}")
    plans = [plan for found in (names if name == LATEST else [name]) if (plan := _read(storage, found)) is not None]
    if not plans:
        path = f"{storage.uri}/{search_path(name if name != LATEST else names[0])}"
        raise TuningError(f"{path}: neither {_PLAN_FILE} nor {_COPY} can be read", "begin a new search with the same settings")
    return max(plans, key=lambda plan: plan.begun)


def _read(storage: Storage, name: str) -> Plan | None:
    for file in (_PLAN_FILE, _COPY):
        try:
            facts = json.loads(storage.read_bytes(search_path(name, file)))
            start = Start(**facts["start"]) if facts.get("start") else None
            settings = TrainingSettings.model_validate(facts["settings"])
            return Plan(name, settings, str(facts["data_digest"]), str(facts["begun"]), start)
        except (StorageError, ValueError, KeyError, TypeError):
            continue
    return None


def attempts(storage: Storage, name: str) -> list[str]:
    """List the folders of trials' checkpoints, the newest first; the next one is `tune-N`, N being their number."""
    found = [folder for folder in storage.names(search_path(name)) if folder.startswith(_ATTEMPT)]
    return sorted(found, key=lambda folder: int(folder.removeprefix(_ATTEMPT)), reverse=True)


def next_attempt(storage: Storage, name: str) -> str:
    """Name the folder for the checkpoints of a search that begins or is resumed now."""
    return f"{_ATTEMPT}{1 + max((int(folder.removeprefix(_ATTEMPT)) for folder in attempts(storage, name)), default=-1)}"


def checkpoints(storage: Storage, name: str, trial: str) -> list[str]:
    """List the folders of a trial's checkpoints, the newest first."""
    found = []
    for attempt in attempts(storage, name):
        path = search_path(name, attempt)
        # A trial that climbed has a folder for each time: trial-3, trial-3.2.
        own = [one for one in storage.names(path) if one.partition(".")[0] == trial]
        for folder in (f"{path}/{one}" for one in sorted(own, reverse=True)):
            found += [f"{folder}/{one}" for one in sorted(storage.names(folder), reverse=True) if one.startswith("checkpoint_")]
    return found
