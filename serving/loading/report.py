"""What a run is told in: a table, and sentences about what may mislead in it.

It computes nothing; figures are those of `outcomes` and `replicas`.
"""

from collections.abc import Sequence

from cluster.console import table
from serving.loading.outcomes import LATE_S, ClosedLoop, OpenLoop, Run
from serving.loading.replicas import busy_shares, counts

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
# Share of requests that may leave late, and of a core that the generator may use, without a warning.
_LATE_SHARE, _BUSY_SHARE = 0.01, 0.9

Rows = list[list[object]]


def one_run(run: Run) -> str:
    """Write one run as a table of what and how much."""
    slowest = max((one.latency_s for one in run.answered), default=0.0)
    rows: Rows = [
        ["load", _pace(run)],
        ["sent", _sent(run)],
        ["answered", f"{len(run.answered):,} in {run.counted_s:.1f} s"],
        ["requests/s", f"{run.requests_per_s:.1f}"],
        ["texts/s", f"{run.texts_per_s:.1f}"],
        *_latencies(run),
        ["slowest", f"{1000 * slowest:.0f} ms" if run.answered else None],
        ["errors", _errors(run)],
        ["versions", ", ".join(f"{version or 'not told'} ({count:,})" for version, count in sorted(run.versions.items())) or None],
    ]
    if run.mean_batch_texts:
        rows.append(["mean batch", f"{_batch(run)} texts"])
    if run.mean_tokens:
        rows.append(["tokens a text", f"{run.mean_tokens:.1f}"])
    return table(["what", "how much"], [*rows, *_server(run), ["generator", _generator(run)]])


def several_runs(runs: Sequence[Run]) -> str:
    """Write runs at several rates, one a row."""
    header = ["at", "sent/s", "requests/s", "texts/s", *PERCENTILES, "errors", "mean batch", "replicas", "engine busy"]
    rows: Rows = []
    for run in runs:
        told = dict(_server(run))
        latencies = [_ms(run, share) for share in PERCENTILES.values()]
        figures = [f"{run.sent_per_s:.1f}", f"{run.requests_per_s:.1f}", f"{run.texts_per_s:.1f}", *latencies, _errors(run), _batch(run)]
        rows.append([run.name, *figures, told.get("replicas"), told.get("engine busy")])
    return table(header, rows, right=range(1, 4 + len(PERCENTILES)))


def ramp(runs: Sequence[tuple[Run, float]]) -> str:
    """Write the steps of a search for capacity, with the texts per second that were counted."""
    rows: Rows = [[run.name, f"{texts:.1f}", _ms(run, 0.5), _ms(run, 0.99), _errors(run)] for run, texts in runs]
    return table(["callers", "texts/s", "p50", "p99", "errors"], rows, right=range(1, 4))


def notes(runs: Sequence[Run]) -> list[str]:
    """Say what latencies count from."""
    said = []
    if any(isinstance(run.load.pace, OpenLoop) for run in runs):
        said.append("latency counts from the time a request was due to leave, so that none is left out that waited (coordinated omission)")
    if any(isinstance(run.load.pace, ClosedLoop) for run in runs):
        said.append(
            "in a closed loop a caller waits for its answer before it asks again, so that slow answers keep others from being asked; "
            "callers in life do not: see --rate"
        )
    if few := [run for run in runs if 0 < len(run.answered) < 1_000]:
        said.append(f"p99.9 of fewer than 1,000 answers{'' if len(few) == len(runs) else ' (' + _names(few) + ')'} is the slowest")
    return said


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)


def warnings(runs: Sequence[Run]) -> list[str]:
    """Say where the generator may have been the bottleneck."""
    return [warning for run in runs for warning in _warnings(run)]


def _warnings(run: Run) -> list[str]:
    late, said = run.late, []
    if len(late) > _LATE_SHARE * run.left:
        said.append(
            f"warning: {run.name}: the generator fell behind its schedule: {len(late):,} of {run.left:,} requests left more than "
            f"{1000 * LATE_S:.0f} ms late, at worst by {1000 * max(late):,.0f} ms; that is in the latencies, but is not the server's"
        )
    if run.elapsed_s and run.cpu_s > _BUSY_SHARE * run.elapsed_s:
        said.append(
            f"warning: {run.name}: the generator used {100 * run.cpu_s / run.elapsed_s:.0f} % of a core; "
            "what is measured may be its limit, not the server's"
        )
    return said


def _latencies(run: Run) -> Rows:
    return [[name, _ms(run, share)] for name, share in PERCENTILES.items()]


def _sent(run: Run) -> str:
    waiting = run.left - len(run.outcomes)
    return f"{run.left:,} ({run.sent_per_s:.1f}/s)" + (f", {waiting:,} of them not answered yet when it was interrupted" if waiting else "")


def _pace(run: Run) -> str:
    pace = run.load.pace
    if isinstance(pace, ClosedLoop):
        return f"{pace.concurrency} requests at once"
    gaps = "Poisson" if pace.burstiness == 1 else f"gamma with a coefficient of variation of {pace.burstiness:g}"
    return f"{pace.rate_per_s:g} requests/s, {gaps}"


def _ms(run: Run, share: float) -> str | None:
    return f"{run.latency_ms(share):.0f} ms" if run.answered else None


def _batch(run: Run) -> str | None:
    if not run.mean_batch_texts:
        return None
    return f"{'at most ' if run.load.bodies.together > 1 else ''}{run.mean_batch_texts:.2f}"


def _errors(run: Run) -> str:
    named = ((f"HTTP {reason}" if reason.isdigit() else reason, count) for reason, count in run.errors.most_common())
    return ", ".join(f"{count:,} {reason}" for reason, count in named) or "0"


def _server(run: Run) -> list[tuple[str, str]]:
    rows = []
    if changes := counts(run.readings):
        later = [f"{count} from {at_s:.0f} s on" for at_s, count in changes[1:]]
        rows.append(("replicas", ", ".join([str(changes[0][1]), *later])))
    if shares := busy_shares(run.readings):
        rows.append(("engine busy", ", ".join(f"{100 * share:.0f} % ({replica})" for replica, share in sorted(shares.items()))))
    return rows


def _generator(run: Run) -> str:
    used = f"{100 * run.cpu_s / run.elapsed_s:.0f} % of a core" if run.elapsed_s else "no time"
    latest = max((one.left_s - one.due_s for one in run.outcomes), default=0.0)
    return used + (f", at most {1000 * latest:.1f} ms behind its schedule" if isinstance(run.load.pace, OpenLoop) else "")
