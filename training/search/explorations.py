"""What a search explores: each group's proposer, scheduler and ladder, and what an interrupted process did of it.

It does not know how trials train, or what is handed out when (`agenda`).
"""

import os
import socket
import tempfile
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from cluster.console import say
from cluster.settings import JOB_VARIABLE
from training.search.agenda import Agenda, Exploration
from training.search.deciding.budget import Budget
from training.search.deciding.contest import MAIN_GROUP, confirmations, group_heads, refit, single_group
from training.search.deciding.ladder import Ladder
from training.search.deciding.schedulers import make_scheduler, replay
from training.search.plan import STUDY_FILE, checkpoints
from training.search.prepared import Prepared
from training.search.proposing.ledger import Ledger
from training.search.proposing.samplers import grid_note
from training.search.proposing.search_space import dimensions, distributions, first_points
from training.search.proposing.searcher import FirstPoint, Proposer
from training.search.trials.found_heads import FirstRung
from training.search.trials.slots import at_once, most_concurrent
from training.search.winner import last_checkpoint
from training.settings import TrainingSettings, of_heads


def make_agenda(prepared: Prepared, ledger: Ledger, rung: FirstRung | None) -> Agenda:
    """Put together what is explored, and what an earlier process did of it.

    Args:
        prepared: The search.
        ledger: What happened so far.
        rung: What heads reached by themselves, if they were searched.

    Raises:
        TuningError: Another process goes on with this search.
    """
    settings = prepared.settings
    tuning, heads = settings.tuning, tuple(settings.heads)
    _claim(ledger)
    groups = {MAIN_GROUP: heads}
    if tuning.compare_single and len(heads) > 1:
        groups |= {single_group(head): (head,) for head in heads}
    explorations = [_exploration(prepared, group, of_heads(settings, own), rung) for group, own in groups.items()]
    agenda = Agenda(
        explorations=explorations,
        confirmations=lambda histories: confirmations(histories, tuning),
        refit=lambda histories: refit(histories, tuning),
        heads_of=lambda group: group_heads(group, heads),
        checkpoints_of=lambda trial: checkpoints(prepared.storage, prepared.name, trial),
        ledger=ledger,
        most_concurrent=lambda: most_concurrent(tuning),
        at_once=lambda: at_once(tuning),
        budget=Budget(tuning.time_budget_s, tuning.cpu_budget_s),
        beforehand_cpu_s=(rung.cpu_s if rung else 0.0) + ledger.cut_cpu_s,
    )
    _remember(prepared, agenda)
    return agenda


def _claim(ledger: Ledger) -> None:
    """Take an interrupted search over: of two that do one is refused, and whoever had it until now ends at its next event.

    Before anything is shared: trials that were interrupted are handed out without an event, and the study is written anew.
    """
    if ledger.is_resumed:
        ledger.append("resumed", {"job": os.environ.get(JOB_VARIABLE, ""), "host": socket.gethostname()})


def _exploration(prepared: Prepared, group: str, settings: TrainingSettings, rung: FirstRung | None) -> Exploration:
    searched = distributions(settings)
    first = [FirstPoint(origin, point) for origin, point in zip(("default", "equal weights"), first_points(settings), strict=False)]
    if (start := prepared.plan.start) is not None:
        own = {path: value for path, value in start.point.items() if path in searched}
        first.insert(1, FirstPoint(f"version {start.version}", own))
    if rung is not None:
        first.insert(1, FirstPoint("heads alone", first[0].point | rung.point(searched)))
    ladder = _ladder(prepared, settings, rung)
    if settings.tuning.sampler == "grid" and (note := grid_note(searched, settings.tuning.num_samples)):
        say(f"note      {note}")
    proposer = Proposer(searched, first, list(settings.heads), settings.tuning, _study_storage(prepared) if group == MAIN_GROUP else None)
    scheduler = make_scheduler(settings.tuning, settings.fit.epochs, dimensions(settings))
    return Exploration(group, tuple(settings.heads), proposer, scheduler, settings.fit.seed, ladder)


def _ladder(prepared: Prepared, settings: TrainingSettings, rung: FirstRung | None) -> Ladder | None:
    tuning = settings.tuning
    # A population compares trials of the same age; a grid is to be complete.
    if not tuning.ladder or tuning.scheduler == "pbt":
        return None
    return Ladder(settings, prepared.source.layers, rung if tuning.sampler != "grid" else None, tuning.reduction_factor)


def _study_storage(prepared: Prepared) -> BaseStorage | None:
    """Keep the study in a file that optuna-dashboard opens; it is rebuilt from the ledger by every resume."""
    if prepared.storage.local_root is None:
        return None
    path = prepared.storage.local_root / prepared.folder / STUDY_FILE
    path.unlink(missing_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _remember(prepared: Prepared, agenda: Agenda) -> None:
    """Take over what an interrupted search did."""
    agenda.histories = agenda.ledger.histories()
    damaged = set()
    for history in agenda.histories.values():
        if history.state == "died":
            # What killed it, a full disk or a lost machine, may be over.
            history.state = ""
        with tempfile.TemporaryDirectory() as folder:
            if history.is_sound and last_checkpoint(prepared, history, Path(folder)) is None:
                say(f"note      the last checkpoint of {history.name} is damaged; it goes on from the one before")
                history.state = ""
                damaged.add(history.name)
    ordered = sorted(agenda.histories.values(), key=lambda history: history.number)
    reports = [(event["trial"]["group"], event["trial"]["number"], event["report"]) for event in agenda.ledger.events("epoch")]
    for one in agenda.explorations:
        # In the order in which they came: whether a trial goes on depends on those before it.
        stopped = replay(one.scheduler, [(number, [report]) for group, number, report in reports if group == one.group])
        for history in (history for history in ordered if history.group == one.group):
            was_decided = stopped.get(history.number) == history.last.get("epoch", -1)
            if not history.state and was_decided and history.name not in damaged and not history.is_climbing:
                # And not carried out before the kill. One that climbs since was stopped before, and goes on.
                agenda.close(history, "stopped")
            one.proposer.remember(history.before_climbing())
    for history in ordered:
        if not history.state:
            agenda.pending.append((history, tuple(checkpoints(prepared.storage, prepared.name, history.name))))
    agenda.spent_s = agenda.ledger.elapsed_s
