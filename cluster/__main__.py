"""The command `python -m cluster`: a cluster on this machine or on several, and jobs on any.

Reads the command line and prints; everything else is imported when a verb needs it, so that `--help` is quick.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.console import Verb, run_command, say, settings_options
from cluster.errors import ClusterError, TwoheadError
from cluster.screen import ago, job_table, screen
from cluster.settings import ClusterSettings, load_settings

if TYPE_CHECKING:
    from cluster.jobs import Jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # argparse treats a second `--` differently from version to version; the command of a job may well have one.
    cut = words.index("--") if "--" in words else len(words)
    return run_command(make_parser(words[cut + 1 :]), words[:cut])


def make_parser(command: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Describe the command line; `command` is what stands behind `--`."""
    shared = settings_options()
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Start a Ray cluster, and submit jobs to one.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def add(name: str, run: Verb, help: str, **options: Any) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, parents=[shared], help=help, **options)
        verb.set_defaults(verb=run)
        return verb

    add("up", _up, "start the machines of cluster.launcher or else a cluster on this one, or find what runs")
    verb = add("status", _status, "show nodes, jobs, searches, served applications, and what is wrong")
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--watch", type=_seconds, nargs="?", const=5.0, metavar="S", help="show it anew every S seconds (default: 5)")
    usage = "%(prog)s [--name NAME] [--on TYPE] [--cpus N] [--gpus N] [--working-dir DIR] [--no-wait] [...] -- COMMAND ..."
    about = "Run COMMAND, everything after `--`, on the cluster, in a copy of the working folder."
    verb = add("submit", _submit, "run a command on the cluster as a job", usage=usage, description=about)
    verb.set_defaults(command=command)
    verb.add_argument("--name", help="a name for the list of jobs")
    where = "run it on such a node: a node type of cluster.launcher, a group of pods, or LABEL=VALUE (default: the head)"
    verb.add_argument("--on", action="append", default=[], metavar="TYPE", help=where)
    verb.add_argument("--cpus", type=_amount, default=0.0, metavar="N", help="CPUs set aside for COMMAND, which waits until they are free")
    verb.add_argument("--gpus", type=_amount, default=0.0, metavar="N", help="GPUs likewise")
    verb.add_argument("--working-dir", type=Path, default=Path(), metavar="DIR", help="folder to ship (default: this one)")
    verb.add_argument("--no-wait", action="store_true", help="print the job's id and return, instead of following its log")
    add("jobs", _jobs, "list the jobs, newest first")
    verb = add("logs", _logs, "print what a job has printed")
    verb.add_argument("id", metavar="ID", help="the job's id, or its beginning")
    verb.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    verb = add("stop", _stop, "end a job: SIGTERM first, SIGKILL after half a minute")
    verb.add_argument("id", metavar="ID", help="the job's id, or its beginning")
    add("down", _down, "end the cluster that `up` started, and nothing else")
    verb = add("drain", _drain, "have a node's replicas move to others before it goes")
    verb.add_argument("node", metavar="NODE", help="its name or address, as `status` shows them")
    verb.add_argument("--within", type=_whole_seconds, default=120, metavar="S", help="it may go after so long (default: %(default)s)")
    add("check", _check, "check the section `cluster` of the settings")
    usage = "%(prog)s raycluster|rayjob|dockerfile|prometheus|grafana [--config FILE] [--set KEY=VALUE] [-- COMMAND ...]"
    verb = add("render", _render, "print what Kubernetes, Prometheus or Grafana takes", usage=usage)
    verb.set_defaults(command=command)
    about = "for KubeRay a cluster that stays, one that runs COMMAND and goes, or the image of both; what Prometheus reads; a dashboard"
    verb.add_argument("what", choices=("raycluster", "rayjob", "dockerfile", "prometheus", "grafana"), help=about)
    return parser


def _settings(options: argparse.Namespace) -> ClusterSettings:
    return load_settings(options.config, options.overrides)


def _up(options: argparse.Namespace) -> int:
    from cluster.launcher import up

    settings = _settings(options)
    if settings.launcher is not None:
        return _up_machines(settings)
    began = time.monotonic()
    launch = up(settings, say)
    if launch.is_new:
        say(f"cluster is up after {time.monotonic() - began:.1f} s; it listens on this machine only and wants a token")
    else:
        say(f"cluster is already running since {ago(launch.facts.started_at_s)}")
    say(f"dashboard and Jobs API: {launch.facts.dashboard_url}")
    say(f"token: in {launch.facts.token_path}")
    return 0


def _up_machines(settings: ClusterSettings) -> int:
    from cluster.machines.known import token_file
    from cluster.machines.ray_up import up

    began = time.monotonic()
    known, is_new = up(settings, say)
    state = f"after {time.monotonic() - began:.0f} s" if is_new else f"already, since {ago(known.started_at_s)}"
    say(f"cluster is up {state}; who has no token gets 401")
    say(f"dashboard and Jobs API: {known.dashboard_url}")
    say(f"token: in {token_file(settings)}; whoever has it runs commands on all machines")
    return 0


def _down(options: argparse.Namespace) -> int:
    from cluster.launcher import down
    from cluster.machines import ray_up

    settings = _settings(options)
    began = time.monotonic()
    # What goes on may be full of others' work.
    if _is_ours(settings):
        _stop_jobs(settings)
    if settings.launcher is not None:
        there = ray_up.down(settings, say)
        say(f"cluster is down after {time.monotonic() - began:.0f} s" if there else "no cluster was started from here")
        return 0
    ended = down(settings)
    if ended is not None:
        say(f"cluster is down after {time.monotonic() - began:.1f} s ({ended} processes ended)")
    else:
        say("no cluster was running" if settings.is_local else f"the cluster at {settings.address} was not started from here, and goes on")
    return 0


def _is_ours(settings: ClusterSettings) -> bool:
    """Tell whether the cluster whose jobs these settings reach is one that `down` will end."""
    from cluster.facts import read_facts
    from cluster.machines import ray_up

    if settings.launcher is not None:
        return ray_up.is_started_here(settings)
    return settings.is_local and read_facts(settings) is not None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"is {text}, but must be from 0.5 to 3600")
    return seconds


def _whole_seconds(text: str) -> int:
    return int(_seconds(text))


def _amount(text: str) -> float:
    amount = float(text)
    if not 0 <= amount <= 10_000:
        raise argparse.ArgumentTypeError(f"is {text}, but must be from 0 to 10000")
    return amount


def _status(options: argparse.Namespace) -> int:
    from cluster.searches import Searches
    from cluster.state import state
    from cluster.storage import Storage

    settings = _settings(options)
    searches = Searches(Storage(settings.storage))
    found = state(settings, searches)
    if options.watch is None:
        say(json.dumps(found, indent=2) if options.json else screen(found))
        return 0
    shown = screen(found)
    while True:
        # Home, and each line and what is below it cleared as it is written: no flicker.
        say("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown.splitlines()) + "\x1b[J")
        time.sleep(options.watch)
        try:
            shown = screen(state(settings, searches))
        except TwoheadError as error:
            # It may answer the next time, and the storage too.
            shown = "\n".join([error.message, *([f"hint: {error.hint}"] if error.hint else [])])


def _submit(options: argparse.Namespace) -> int:
    from cluster.jobs import open_jobs
    from cluster.place import read_place
    from cluster.runtime_env import shown_bytes, survey

    settings = _settings(options)
    place = read_place(options.on, options.cpus, options.gpus)
    shipment = survey(settings, options.working_dir)
    with open_jobs(settings) as jobs:
        lacking = jobs.lacks(place)
        job_id = jobs.submit(options.command, shipment, options.name, place)
        if lacking:
            sys.stderr.write(f"{lacking}\n")
        if options.no_wait:
            say(job_id)
            return 0
        say(f"shipped {shipment.folder}: {len(shipment.sizes)} files, {shown_bytes(shipment.total_bytes)}")
        say(f"job {job_id}")
        return _follow(jobs, job_id)


def _jobs(options: argparse.Namespace) -> int:
    from cluster.jobs import open_jobs
    from cluster.searches import Searches, best_by_job
    from cluster.storage import Storage

    settings = _settings(options)
    with open_jobs(settings) as jobs:
        found = [dataclasses.asdict(job) for job in jobs.all()]
    best = best_by_job(Searches(Storage(settings.storage)).all()) if found else {}
    found = [job | {"best": best.get(job["id"])} for job in found]
    say(job_table(found) if found else "no jobs")
    return 0


def _logs(options: argparse.Namespace) -> int:
    from cluster.jobs import open_jobs

    with open_jobs(_settings(options)) as jobs:
        job_id = jobs.find(options.id).id
        if options.follow:
            return _follow(jobs, job_id)
        _write(jobs.log(job_id))
    return 0


def _stop(options: argparse.Namespace) -> int:
    from cluster.jobs import open_jobs

    with open_jobs(_settings(options)) as jobs:
        job = jobs.find(options.id)
        if not job.is_ended:
            job = jobs.stop(job.id)
    say(f"job {job.id}: {'waits for room, and is stopped when it gets it' if job.state == 'PENDING' else job.state}")
    return 0


def _stop_jobs(settings: ClusterSettings) -> None:
    from cluster.jobs import open_jobs

    # A cluster that does not answer any more has no jobs to end in peace.
    with suppress(ClusterError), open_jobs(settings) as jobs:
        for job in jobs.all():
            if not job.is_ended:
                say(f"stopping job {job.id} …")
                try:
                    jobs.stop(job.id)
                except ClusterError as error:
                    # The others shall still be asked.
                    say(error.message)


def _drain(options: argparse.Namespace) -> int:
    from cluster.draining import drain

    drain(_settings(options), options.node, options.within, say)
    return 0


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if settings.launcher is not None:
        from cluster.machines.launcher_file import check_launcher

        check_launcher(settings)
    say(f"{options.config}: the section cluster is fine")
    return 0


def _render(options: argparse.Namespace) -> int:
    from cluster import grafana, kubernetes, prometheus

    settings = _settings(options)
    makers: dict[str, Callable[[], str]] = {
        "raycluster": lambda: kubernetes.to_yaml(kubernetes.ray_cluster(settings)),
        "rayjob": lambda: kubernetes.to_yaml(kubernetes.ray_job(settings, options.command)),
        "dockerfile": lambda: kubernetes.dockerfile(settings),
        "prometheus": lambda: prometheus.scrape_config(settings),
        "grafana": grafana.cluster_dashboard,
    }
    say(makers[options.what]().rstrip())
    return 0


def _follow(jobs: "Jobs", job_id: str) -> int:
    try:
        job = jobs.follow(job_id, _write)
    except KeyboardInterrupt:
        say(f"\njob {job_id} goes on; `python -m cluster logs -f {job_id}` follows it, `stop {job_id}` ends it")
        raise
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    say(f"job {job.id}: {job.state}{code}")
    return 0 if job.state == "SUCCEEDED" else 1


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
