"""The search: Ray Tune drives trials, Optuna proposes them, hopeless ones are stopped, the best becomes a checkpoint.

It does not know how one trial trains (`trial`), what a search writes down (`ledger`, `plan`), or how its winner is judged (`winner`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cluster.connection import connect
from cluster.console import say
from cluster.errors import StorageError
from cluster.everywhere import check_everywhere
from cluster.settings import ClusterSettings
from cluster.storage import Storage
from training.data.dataset import load_dataset
from training.errors import TuningError
from training.search.deciding.budget import used_by
from training.search.deciding.pareto import parse_pick
from training.search.experiment import fit, make_trackers, quieten
from training.search.explorations import make_agenda
from training.search.plan import LEDGER_FOLDER, Plan, Start, check_name, default_name, note_job, pin, read_plan
from training.search.prepared import Prepared, announce, prepare, trials_so_far, with_budget, without_test
from training.search.proposing.ledger import Ledger, TrialHistory
from training.search.proposing.search_space import check_depth, check_space
from training.search.same_words import require_same_words
from training.search.stopping import ended_by_signals, is_stopped_by, report_goes_first
from training.search.trials.first_look import look_at_words
from training.search.trials.first_rung import Allowance, BudgetSpentError, first_rung
from training.search.trials.found_heads import read_rung
from training.search.trials.slots import slots
from training.search.winner import SearchResult, finish, found_so_far
from training.search.words_alone import words_alone, words_if_better
from training.settings import TrainingSettings

_NOTHING_BEGAN = "note      the budget is used up before a trial could begin, so what words say by themselves is published"


@dataclass
class _Course:
    """How far a search has come.

    Attributes:
        prepared: The search.
        begun: When this process began to see to it, `time.monotonic()`: what is read and counted first takes its time, too.
        histories: Its trials.
        spent_s: Wall seconds that earlier processes took.
        is_whole: It came to its end.
    """

    prepared: Prepared
    begun: float
    histories: Sequence[TrialHistory] = field(default_factory=list)
    spent_s: float = 0.0
    is_whole: bool = False

    @property
    def elapsed_s(self) -> float:
        """Wall seconds it took so far, without the time it lay interrupted."""
        return self.spent_s + time.monotonic() - self.begun


def search(settings: TrainingSettings, cluster: ClusterSettings, name: str | None = None, start: Start | None = None) -> SearchResult:
    """Begin a search and see it through.

    Args:
        settings: The section `training`.
        cluster: The section `cluster`.
        name: Of a new search; by default made from heads and time.
        start: The earlier version to start from, if any.

    Raises:
        DataError: The data cannot be used.
        SettingsError: The search space reaches values that are not allowed.
        TuningError: The name is taken, or no trial brought a score.
    """
    begun = time.monotonic()
    name = name or default_name(settings)
    check_name(name)
    check_space(settings)
    parse_pick(settings.tuning.pick, list(settings.heads))
    storage = Storage(cluster.storage)
    dataset = load_dataset(settings)
    plan = Plan(name, settings, dataset.digest, start=start)
    prepared = prepare(plan, storage, dataset)
    check_depth(settings, prepared.source.layers)
    make_trackers(prepared)
    # Only now: a search that cannot begin leaves its name free.
    return _see_through(replace(prepared, plan=pin(storage, prepared.plan)), cluster, begun)


def resume(name: str, cluster: ClusterSettings, budget: Mapping[str, float] | None = None) -> SearchResult:
    """Go on with a search that was interrupted, with the settings it began with.

    Ended trials stay as they are; interrupted ones go on from their last whole checkpoint.

    Args:
        name: Of the search.
        cluster: The section `cluster`.
        budget: Other values of `num_samples`, and of `time_budget_s` and `cpu_budget_s` from now on.

    Raises:
        TuningError: There is no such search, or its data changed.
    """
    begun = time.monotonic()
    storage = Storage(cluster.storage)
    plan = read_plan(storage, name)
    dataset = load_dataset(plan.settings)
    if dataset.digest != plan.data_digest:
        raise TuningError(
            f"search {name!r}: its data changed since it began (digest {dataset.digest[:12]}, then {plan.data_digest[:12]})",
            "put the old tables back, or begin a new search",
        )
    return _see_through(prepare(plan, storage, dataset), cluster, begun, budget or {})


def _see_through(prepared: Prepared, cluster: ClusterSettings, begun: float, budget: Mapping[str, float] | None = None) -> SearchResult:
    quieten()
    ledger = Ledger(prepared.storage, f"{prepared.folder}/{LEDGER_FOLDER}")
    note_job(prepared.storage, prepared.name)
    prepared = with_budget(prepared, budget or {}, _used(prepared, ledger))
    announce(prepared)
    for file in ledger.damaged:
        say(f"note      {ledger.path}/{file} is damaged and left out; the trial goes on from its last whole checkpoint")
    require_same_words(prepared, ledger)
    course = _Course(prepared, begun, list(ledger.histories().values()), ledger.elapsed_s)
    try:
        with ended_by_signals():
            _look_at_words(course, ledger)
            _connected(course, ledger, cluster)
    except (KeyboardInterrupt, SystemExit) as error:
        # Before Tune listened, or after.
        if not is_stopped_by(error):
            raise
    # Without Ray: what it held is free for others.
    with report_goes_first(is_whole=course.is_whole), _told_how_to_go_on(prepared):
        if not course.is_whole:
            return _finish_early(course, ledger)
        histories = [*course.histories, *words_if_better(course.prepared.assignment, course.histories)]
        return finish(course.prepared, histories, course.elapsed_s, ledger)


def _connected(course: _Course, ledger: Ledger, cluster: ClusterSettings) -> None:
    prepared = course.prepared
    # Once more: where Ray starts it takes SIGTERM for itself.
    with connect(cluster) as connection, ended_by_signals():
        say(f"Ray       {connection.dashboard_url} {'(started for this search)' if connection.is_private else ''}".rstrip())
        if not connection.is_private and (nodes := check_everywhere(prepared.storage)):
            say(f"storage   all {nodes} nodes read and write it")
        with _told_how_to_go_on(prepared):
            _run(course, ledger)


def _look_at_words(course: _Course, ledger: Ledger) -> None:
    """Tell what is known before anything is encoded."""
    assignment = course.prepared.assignment
    seen = None if ledger.elapsed_s else look_at_words(assignment)
    if seen is not None:
        # Whoever is stopped from here on has a model to publish: see `words_alone`.
        is_model = not assignment.start
        ledger.append("look", {"look": seen.to_dict(), "is_model": is_model, "elapsed_s": course.elapsed_s})
        say(f"first     score {seen.score:.3f} ({seen.shown}): words by themselves, on {seen.validation_texts} validation texts")


def _run(course: _Course, ledger: Ledger) -> None:
    prepared = course.prepared
    # A search that could not run a single trial says so before anything waits for room.
    slots(prepared.settings.tuning)
    try:
        rung = first_rung(prepared.assignment, prepared.folder, ledger, _allowance(course, ledger), lambda: course.elapsed_s)
    except BudgetSpentError:
        say(_NOTHING_BEGAN)
        course.is_whole = True
        return
    if rung is not None:
        prepared = course.prepared = replace(prepared, assignment=replace(prepared.assignment, heads_from=prepared.folder))
    agenda = make_agenda(prepared, ledger, rung)
    agenda.begun, agenda.spent_s = course.begun, course.spent_s
    nothing_begins = not agenda.histories and agenda.is_spent
    if nothing_begins:
        say(_NOTHING_BEGAN)
    try:
        course.is_whole = nothing_begins or fit(prepared, agenda)
    finally:
        course.histories = list(agenda.histories.values())


def _allowance(course: _Course, ledger: Ledger) -> Allowance:
    """Return what the first rung may use: no limit holds before there is something to publish, or where trials wait to go on."""
    tuning = course.prepared.settings.tuning
    if ledger.words_score is None or course.histories:
        return Allowance()
    used = _used(course.prepared, ledger)["cpu_budget_s"]
    return Allowance(tuning.time_budget_s, None if tuning.cpu_budget_s is None else tuning.cpu_budget_s - used)


def _used(prepared: Prepared, ledger: Ledger) -> dict[str, float]:
    """Return what earlier processes used, under the names of the settings that limit it."""
    rung = read_rung(prepared.storage, prepared.folder, prepared.settings.heads)
    trained = sum(used_by(one).cpu_s for one in ledger.histories().values())
    return {"time_budget_s": ledger.elapsed_s, "cpu_budget_s": trained + (rung.cpu_s if rung else 0.0) + ledger.cut_cpu_s}


def _finish_early(course: _Course, ledger: Ledger) -> SearchResult:
    """Make a version of what is best so far, judged on the validation texts alone: the search may go on, and look at the test texts then.

    Args:
        course: What the search came to.
        ledger: Of the search.

    Raises:
        TuningError: Nothing has a score yet, or another process goes on with the search already.
    """
    prepared = course.prepared
    found, others = found_so_far(prepared, course.histories)
    words = words_alone(prepared.assignment, course.histories)
    if not found and words is None:
        raise _nothing_yet(prepared)
    early = f"stopped before its end, with {trials_so_far(prepared.settings.tuning, found)}; the test texts are unseen; {_go_on(prepared)}"
    # As in a whole search: a rule over several heads is not asked about them, where it has anything else.
    is_asked = words is not None and not (found and prepared.settings.tuning.mode == "pareto")
    histories = [*found, *others, *([words] if words and is_asked else [])]
    return finish(without_test(prepared), histories, course.elapsed_s, ledger, early)


def _nothing_yet(prepared: Prepared) -> TuningError:
    return TuningError(f"search {prepared.name!r} was stopped before its first trial had a score", _go_on(prepared))


def _go_on(prepared: Prepared) -> str:
    return f"go on with it: python -m training tune --resume {prepared.name}"


@contextmanager
def _told_how_to_go_on(prepared: Prepared) -> Iterator[None]:
    """Turn what a full disk or a lost cluster raises into an error that says how to go on."""
    from ray.exceptions import OutOfMemoryError, RayError
    from ray.tune.error import TuneError

    try:
        yield
    except OutOfMemoryError as error:
        hint = "set training.tuning.max_concurrent_trials or training.fit.batch_tokens lower"
        raise TuningError(
            f"search {prepared.name!r} cannot go on: a machine ran low on memory, and Ray ended what took most of it twice",
            f"{hint}, then go on: python -m training tune --resume {prepared.name}",
        ) from error
    except (TuneError, RayError, OSError, StorageError) as error:
        cause = str(error).strip().splitlines()[-1]
        hint = f"see to the cause, then go on: python -m training tune --resume {prepared.name}"
        raise TuningError(f"search {prepared.name!r} cannot go on: {cause}", hint) from error
