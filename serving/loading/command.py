"""The verb `load`: its options, and the order of things.

At the top only argparse and what it needs is imported, since `--help` of every verb comes through here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.console import say
from cluster.errors import SettingsError
from serving.loading.arrivals import LEAST_BURSTINESS, MOST_BURSTINESS

if TYPE_CHECKING:
    from serving.errors import AnswerError
    from serving.loading.outcomes import ClosedLoop, OpenLoop, Run
    from serving.loading.texts import Bodies, Lengths

_COUNT, _SECONDS, _CONCURRENCY = 200, 10.0, 32
# One number of callers in the ramp of --find-capacity.
STEP_S = 5.0
INTERRUPTED = 130

_ABOUT = """
Sends requests to /v1/predict and tells how quickly they were answered. Latency counts from the time a request was due to leave, so that no
wait is left out. A small request takes this process an eighth to a quarter of a millisecond of CPU: 1,000 a second are a quarter of a core,
and 3,000 to 4,000 the most. It warns where it could not keep to its schedule.
"""


def add_load(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", shared: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    load = verbs.add_parser("load", parents=[shared], help="send many requests and measure", description=_ABOUT)
    load.add_argument("--url", help="where it is served (default: serving.host and serving.port)")
    pace = load.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive, metavar="R", help="requests a second, leaving on a schedule whatever the answers do")
    pace.add_argument("--concurrency", type=_whole, default=_CONCURRENCY, metavar="C", help="requests at once (default: %(default)s)")
    pace.add_argument(
        "--find-capacity",
        action="store_true",
        help=f"double the requests at once, {STEP_S:g} s each, until two doublings in a row answer less than 5 %% more texts",
    )
    load.add_argument("--at", type=_percents, default=(), metavar="P,P", help="then send at these percents of the capacity, like 50,80,95")
    length = load.add_mutually_exclusive_group()
    length.add_argument("--count", type=_whole, metavar="N", help=f"requests (default: {_COUNT})")
    length.add_argument("--seconds", type=_positive, metavar="S", help=f"for so long (default with --at: {_SECONDS:g}, for each)")
    load.add_argument(
        "--arrivals", choices=("poisson", "gamma"), default="poisson", help="how a schedule's gaps vary (default: %(default)s)"
    )
    load.add_argument("--burstiness", type=_burstiness, metavar="CV", help="of gamma: coefficient of variation of the gaps; 1 is poisson")
    sent = load.add_mutually_exclusive_group()
    sent.add_argument("--texts", type=Path, metavar="FILE", help="send these: .txt with one a line, or .jsonl with objects with a text")
    sent.add_argument(
        "--lengths",
        type=_lengths,
        metavar="M,S,MOST",
        help="without FILE: log-normal lengths in tokens, as median, sigma, cap (50,0.8,512)",
    )
    load.add_argument("--texts-per-request", type=_whole, default=1, metavar="N", help="(default: %(default)s)")
    load.add_argument("--seed", type=int, default=7, help="of gaps and made-up texts (default: %(default)s)")
    load.add_argument("--timeout", type=_positive, default=60.0, metavar="S", help="for one answer (default: %(default)g)")
    load.add_argument("--csv", type=Path, metavar="FILE", help="write a row a request: times, status, texts, batch, version; no texts")
    load.add_argument("--svg", type=Path, metavar="FILE", help="draw latency over time and its percentiles")
    load.set_defaults(verb=run_load)


def run_load(arguments: argparse.Namespace) -> int:
    """Send what the command line asks for, and report; after Ctrl-C what there is."""
    _check(arguments)
    url = _url(arguments)
    measurement = _Measurement(arguments, url, _bodies(arguments))
    try:
        measurement.send()
    except KeyboardInterrupt:
        measurement.was_interrupted = True
    return measurement.report()


class _Measurement:
    """What is sent, and what was."""

    def __init__(self, arguments: argparse.Namespace, url: str, bodies: "Bodies") -> None:
        self._arguments, self._url, self._bodies = arguments, url, bodies
        self.was_interrupted = False
        self._runs: list[Run] = []
        self._ramp: list[tuple[Run, float]] = []

    def send(self) -> None:
        """Send all of it."""
        from serving.loading.capacity import best, find_capacity
        from serving.loading.outcomes import ClosedLoop

        asked = self._arguments
        if not asked.find_capacity:
            count = _COUNT if asked.count is None and asked.seconds is None else asked.count
            pace = ClosedLoop(asked.concurrency) if asked.rate is None else self._open_loop(asked.rate)
            name = f"{asked.concurrency} at once" if asked.rate is None else f"{asked.rate:g}/s"
            self._run(name, pace, asked.seconds, count)
            return
        capacity = best(find_capacity(self._measure))
        if not capacity.texts_per_s:
            raise self._nothing_answered(f"none within {STEP_S:g} s")
        for percent in asked.at:
            rate = percent / 100 * capacity.texts_per_s / self._bodies.together
            self._run(f"{percent:g} %", self._open_loop(rate), asked.seconds or _SECONDS, None)

    def report(self) -> int:
        """Print and write what there is; returns the exit code."""
        from serving.loading.report import notes, one_run, ramp, several_runs, warnings

        say(f"{self._url}, {self._bodies.together} texts a request" if self._bodies.together > 1 else self._url)
        if self._ramp:
            run, texts_per_s = self._best()
            say(f"{ramp(self._ramp)}\ncapacity: {texts_per_s:.1f} texts/s, with {run.name}{' so far' * self.was_interrupted}")
        if self._runs:
            say(several_runs(self._runs) if self._ramp else one_run(self._runs[0]))
        for note in (*notes(self._runs), *warnings(self._all())):
            say(note)
        self._write()
        if self.was_interrupted:
            return INTERRUPTED
        return 1 if any(run.errors for run in self._runs) else 0

    def _write(self) -> None:
        from serving.loading.csv_file import write_csv
        from serving.loading.plot import write_svg

        if self._arguments.csv is not None:
            write_csv(self._arguments.csv, self._all())
            say(f"wrote {self._arguments.csv}")
        if self._arguments.svg is not None and self._all():
            write_svg(self._arguments.svg, self._runs or [self._best()[0]])
            say(f"wrote {self._arguments.svg}")

    def _all(self) -> list["Run"]:
        return [*(run for run, _ in self._ramp), *self._runs]

    def _best(self) -> tuple["Run", float]:
        return max(self._ramp, key=lambda step: step[1])

    def _open_loop(self, rate_per_s: float) -> "OpenLoop":
        from serving.loading.outcomes import OpenLoop

        burstiness = self._arguments.burstiness if self._arguments.arrivals == "gamma" else 1.0
        return OpenLoop(rate_per_s, burstiness, self._arguments.seed)

    def _measure(self, concurrency: int) -> float:
        """Return texts answered per second by so many requests at once."""
        from serving.loading.capacity import WARM_UP_SHARE
        from serving.loading.outcomes import ClosedLoop, Load, Run

        load = Load(self._url, ClosedLoop(concurrency), self._bodies, STEP_S, None, self._arguments.timeout, is_watched=False)
        run = Run(f"{concurrency} at once", load)
        _send(run)
        if not run.answered:
            raise self._nothing_answered(", ".join(f"{count:,} {reason}" for reason, count in run.errors.items()))
        self._ramp.append((run, run.texts_per_s_between(WARM_UP_SHARE * STEP_S, STEP_S)))
        return self._ramp[-1][1]

    def _run(self, name: str, pace: "OpenLoop | ClosedLoop", seconds: float | None, count: int | None) -> None:
        from serving.loading.outcomes import Load, Run

        # Noted before it is sent, so that what there is after Ctrl-C can be told.
        self._runs.append(Run(name, Load(self._url, pace, self._bodies, seconds, count, self._arguments.timeout)))
        _send(self._runs[-1])

    def _nothing_answered(self, reason: str) -> "AnswerError":
        from serving.errors import AnswerError

        return AnswerError(f"{self._url}: no request was answered ({reason})", hint="is it running? python -m serving run")


def _send(run: "Run") -> None:
    import asyncio

    from serving.loading.progress import shown
    from serving.loading.sending import send

    with shown(run):
        asyncio.run(send(run))


def _bodies(arguments: argparse.Namespace) -> "Bodies":
    from serving.loading.texts import Bodies, Lengths, make_texts, read_texts

    made = arguments.texts is None
    texts = make_texts(arguments.lengths or Lengths(), arguments.seed) if made else read_texts(arguments.texts)
    return Bodies(texts, arguments.texts_per_request)


def _url(arguments: argparse.Namespace) -> str:
    from serving.settings import load_settings

    url: str = arguments.url or load_settings(arguments.config, arguments.overrides).url_from_here
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise SettingsError(f"--url is {url!r}, but must be like http://127.0.0.1:8000")
    return url.rstrip("/")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is sent."""
    if (arguments.burstiness is None) != (arguments.arrivals == "poisson"):
        raise SettingsError("--arrivals gamma and --burstiness belong together", "--arrivals gamma --burstiness 2")
    if arguments.arrivals == "gamma" and arguments.rate is None and not arguments.at:
        raise SettingsError("--arrivals is of a schedule, but there is none", "--rate R")
    if arguments.at and not arguments.find_capacity:
        raise SettingsError("--at is in percent of a capacity, but none is looked for", "--find-capacity --at 50,80,95")
    if arguments.find_capacity and arguments.count is not None:
        raise SettingsError("--count does not go with --find-capacity, whose loads last some time", "--seconds S")
    if arguments.find_capacity and arguments.seconds is not None and not arguments.at:
        raise SettingsError("--seconds is the time of each of --at, but there is none", "--at 50,80,95")
    for option, path in (("--csv", arguments.csv), ("--svg", arguments.svg)):
        if path is not None and not path.parent.is_dir():
            raise SettingsError(f"{option} is {path}, but there is no folder {path.parent}")


def _positive(text: str) -> float:
    if (found := _number(text)) is None or not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a number above 0")
    return found


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a whole number of at least 1")
    return int(text)


def _burstiness(text: str) -> float:
    if (found := _number(text)) is None or not LEAST_BURSTINESS <= found <= MOST_BURSTINESS:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be between {LEAST_BURSTINESS:g} and {MOST_BURSTINESS:g}")
    return found


def _percents(text: str) -> tuple[float, ...]:
    found = [_number(part) for part in text.split(",")]
    if (percents := [one for one in found if one is not None and 0 < one <= 1000]) != found:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be percents above 0 and up to 1000, like 50,80,95")
    return tuple(percents)


def _lengths(text: str) -> "Lengths":
    from serving.loading.texts import Lengths

    numbers: Sequence[float | None] = [_number(part) for part in text.split(",")]
    match numbers:
        case [float(median), float(sigma), float(most)] if 1 <= median <= most <= 100_000 and 0 <= sigma <= 5:
            return Lengths(median, sigma, int(most))
    raise argparse.ArgumentTypeError(f"is {text!r}, but must be a median, a sigma of at most 5 and a cap, like 50,0.8,512")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
