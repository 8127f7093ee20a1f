"""How fast do other servers answer with the same encoder on the same machine?

    python benchmarks/over_http/peers.py --make-environments --rounds 3

One classifier of random weights (6 layers of 384, ten classes) is served by each of them in turn, on loopback, with one worker of one
torch thread and the batching that its documentation shows (printed below the table), and then by this project in float32 and in int8.
Each has a virtual environment of its own, which `--make-environments` makes where it is missing. Before it is measured it has to give the
probabilities that transformers gives, for texts that arrive together and so share batches.

Asked about single texts of log-normal length (median 50 tokens, sigma .8, at most 512) by 32 callers, each waiting for its answer:
texts a second by the clock, and CPU milliseconds a text of all processes of the server; who asks is not counted. Then texts arrive at
random at 80 % of what the peer answered, first at the peer, later in the round at this project's server: 99th percentiles of the latency.
Every server is started anew in every round; figures are medians of the rounds, ratios are ratios of medians. The cores that other programs
took while a server was kept busy stand beside it: where they are many, CPU milliseconds tell more than texts a second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from made import MAX_TOKENS, SHAPES, make_texts, write_version
from peers_list import OURS, PEERS, Server, Unusable, find_environment
from peers_running import Running, running
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
from wire import Sent

from training.checkpoint import load_model

SHAPE = "minilm"
TEXTS = 512
CHECKED = 16
CALLERS = 32
SHARE = 0.8
WARM_S = 5.0
QUANTILE = 0.99


@dataclass(frozen=True)
class Models:
    """One encoder, saved for this project and for transformers.

    Attributes:
        version: For this project; its head reads the mean of the tokens.
        plain: For transformers; its head reads what BERT's pooler makes of the first token.
        texts: To ask about.
        ours: Probabilities of the first texts by the version's head on transformers' encoder, a text alone.
        theirs: The same by transformers' own model.
    """

    version: Path
    plain: Path
    texts: list[str]
    ours: list[list[float]]
    theirs: list[list[float]]


def write_models(folder: Path) -> Models:
    """Write both, and ask transformers."""
    version, plain, texts = write_version(folder, SHAPE, heads=1), folder / "plain", make_texts(TEXTS)
    source = load_model(version)
    classes = source.config.heads[0]["classes"]
    named = {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}
    model = BertForSequenceClassification(BertConfig(vocab_size=30_522, **SHAPES[SHAPE], **named)).eval()
    unmatched = model.bert.load_state_dict(source.encoder.state_dict(), strict=False)
    if unmatched.unexpected_keys or not all(key.startswith("pooler.") for key in unmatched.missing_keys):
        raise RuntimeError(f"not the same encoder: {unmatched}")
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), model_max_length=MAX_TOKENS)
    rows = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts[: CHECKED + 1]]
    with torch.inference_mode():
        encoded = [model.bert(**row) for row in rows]
        torch.nn.init.normal_(model.classifier.weight, std=0.5)
        # Random encoders answer much alike: what one text gets is taken off, so that the others' probabilities differ.
        model.classifier.bias.copy_(-encoded.pop().pooler_output[0] @ model.classifier.weight.T)
        theirs = [model(**row).logits[0].softmax(-1).tolist() for row in rows[:CHECKED]]
        ours = [source.heads[0](one.last_hidden_state[0].mean(0)).softmax(-1).tolist() for one in encoded]
    model.save_pretrained(str(plain))
    tokenizer.save_pretrained(str(plain))
    return Models(version, plain, texts, ours, theirs)


@dataclass(frozen=True)
class Reading:
    """A server that was kept busy.

    Attributes:
        texts_per_s: Answered, by the clock.
        cpu_ms: Of a text.
        others: Cores that other programs took meanwhile.
    """

    texts_per_s: float
    cpu_ms: float
    others: float


@dataclass
class Found:
    """What all rounds found.

    Attributes:
        readings: Server → its readings.
        latencies: Server and peer → 99th percentiles in ms at the peer's rate.
        failed: Server and peer → requests among them that were not answered; the percentiles are of the others.
        rates: Peer → rates it and this project's server were asked at.
        reasons: Server → why it could not be measured.
    """

    readings: dict[str, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    latencies: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[str, str] = field(default_factory=dict)

    def median(self, name: str, what: str) -> float:
        """Return the median of a server's readings."""
        return statistics.median(getattr(one, what) for one in self.readings[name])


def keep_busy(server: Running, seconds: float) -> Reading:
    """Measure a server that always has requests.

    Raises:
        Unusable: It refuses some.
    """
    server.send(WARM_S, "--concurrency", CALLERS)
    begun, cpu, all_cpu = time.perf_counter(), server.cpu_s(), _all_cpu_s()
    sent = server.send(seconds, "--concurrency", CALLERS)
    took, cpu, all_cpu = time.perf_counter() - begun, server.cpu_s() - cpu, _all_cpu_s() - all_cpu
    if failed := sum(one.status != 200 for one in sent):
        raise Unusable(f"{failed} of {len(sent)} requests not answered: status {max(one.status for one in sent)}")
    wall = max(one.left_s + one.latency_s for one in sent)
    return Reading(len(sent) / wall, 1000 * cpu / len(sent), max(0.0, (all_cpu - cpu) / took))


def _all_cpu_s() -> float:
    """CPU seconds so far of all processes of the machine but those that this one started and waited for: who asks."""
    times, asking = psutil.cpu_times(), os.times()
    return times.user + times.nice + times.system - asking.children_user - asking.children_system


def tail_ms(answered: list[Sent]) -> float:
    """Return the 99th percentile of the latencies."""
    values = sorted(1000 * one.latency_s for one in answered)
    return values[min(len(values) - 1, int(QUANTILE * len(values)))] if values else float("nan")


class Comparison:
    """All servers, round by round.

    Args:
        options: Of the command.
        folder: For models, requests and logs.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._models = write_models(folder)
        self.found = Found()

    def prepare(self) -> None:
        """Find all environments before anything is measured."""
        for server in PEERS:
            with self._told(server):
                find_environment(self._options.environments, server, self._options.make_environments)

    def round(self) -> None:
        """Measure every server that is not given up yet, peers first."""
        print(f"load of the machine {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for server in (*PEERS, *OURS):
            if server.name not in self.found.reasons:
                with self._told(server):
                    self._measure(server)

    def _measure(self, server: Server) -> None:
        is_ours = server in OURS
        expected = self._models.ours if is_ours else self._models.theirs
        programs = find_environment(self._options.environments, server, make=False)
        bodies = self._folder / f"{server.slug}.jsonl"
        bodies.write_text("".join(json.dumps(server.body(text)) + "\n" for text in self._models.texts), encoding="utf-8")
        model = self._models.version if is_ours else self._models.plain
        with running(server, programs, model, bodies, self._options.batch or server.batch) as one:
            one.check(self._models.texts, expected)
            reading = keep_busy(one, self._options.seconds)
            told = f"{reading.texts_per_s:.1f} texts/s, {reading.cpu_ms:.2f} CPU ms a text, others took {reading.others:.2f} cores"
            print(f"{server.name}: {told}", file=sys.stderr, flush=True)
            self.found.readings[server.name].append(reading)
            if not is_ours:
                self.found.rates[server.name].append(SHARE * self.found.median(server.name, "texts_per_s"))
            for peer in [peer.name for peer in PEERS if peer.name not in self.found.reasons] if is_ours else [server.name]:
                self._load(one, server.name, peer)

    def _load(self, one: Running, name: str, peer: str) -> None:
        rate = self.found.rates[peer][-1]
        sent = one.send(2 * self._options.seconds, "--rate", rate)
        answered = [request for request in sent if request.status == 200]
        p99, failed = tail_ms(answered), len(sent) - len(answered)
        print(f"{name} at {rate:.1f} texts/s: p99 {p99:.0f} ms, {failed} of {len(sent)} not answered", file=sys.stderr, flush=True)
        self.found.latencies[name, peer].append(p99)
        self.found.failed[name, peer] += failed

    @contextmanager
    def _told(self, server: Server) -> Iterator[None]:
        try:
            yield
        except Unusable as error:
            print(f"{server.name}: {error}", file=sys.stderr, flush=True)
            self.found.reasons[server.name] = str(error)


def print_table(found: Found, batch: int | None) -> None:
    """Print what was found, one server a row, and what each was given."""
    measured = [one.name for one in OURS if one.name not in found.reasons]
    columns = ["server", "texts/s", *(f"{name} / it" for name in measured), "CPU ms a text", *(f"{name} / it" for name in measured)]
    columns += ["cores others took", "80 %, texts/s", "p99 ms", *(f"{name} there (/ it)" for name in measured)]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for server in (*PEERS, *OURS):
        cells = [f"not measured: {found.reasons[server.name]}"] if server.name in found.reasons else _row(found, server, measured)
        print(f"| {' | '.join([server.name, *cells, *[''] * (len(columns) - 1 - len(cells))])} |")
    print()
    for server in (*PEERS, *OURS):
        print(
            f"- {server.name}: {server.given.format(batch=batch or server.batch)}"
            + (f" ({', '.join(server.requirements)})" if server.requirements else "")
        )


def _row(found: Found, server: Server, measured: list[str]) -> list[str]:
    cells = []
    for what, decimals in (("texts_per_s", 1), ("cpu_ms", 2)):
        its = found.median(server.name, what)
        cells += [f"{its:.{decimals}f}", *(f"{found.median(name, what) / its:.2f}" for name in measured)]
    cells.append(f"{found.median(server.name, 'others'):.2f}")
    if server not in OURS:
        its = statistics.median(found.latencies[server.name, server.name])
        cells.append(f"{statistics.median(found.rates[server.name]):.1f}")
        for name in (server.name, *measured):
            p99, failed = statistics.median(found.latencies[name, server.name]), found.failed[name, server.name]
            ratio = "" if name == server.name else f" ({p99 / its:.2f})"
            cells.append(f"{p99:.0f}{ratio}" + (f", {failed} not answered" if failed else ""))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one reading; latencies take twice as long")
    parser.add_argument("--make-environments", action="store_true", help="install the peers that are not installed yet")
    default = Path(tempfile.gettempdir()) / "peers-environments"
    parser.add_argument("--environments", type=Path, default=default, help="folder of the virtual environments (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="most texts in a batch of every peer, in place of what its documentation shows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        comparison = Comparison(options, Path(folder))
        comparison.prepare()
        for _ in range(options.rounds):
            comparison.round()
        print_table(comparison.found, options.batch)


if __name__ == "__main__":
    main()
