"""Sends requests over HTTP/1.1 and tells when each left, how long it took and what came back; one JSON document on standard output.

    python benchmarks/over_http/wire.py --port 8000 --bodies bodies.jsonl --seconds 10 --concurrency 32
    python benchmarks/over_http/wire.py --port 8000 --bodies bodies.jsonl --seconds 10 --rate 80 --seed 0 --then-one-by-one 5

With a rate requests leave on a schedule (Poisson), whatever the answers do, and latency counts from the time on the schedule. It speaks to
sockets itself, so that on a small machine the one who measures takes little from the one who is measured; connections are kept. It ends
when all requests that left are answered.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Sent(NamedTuple):
    """One request.

    Attributes:
        left_s: Since the first.
        latency_s: Until its answer was whole.
        status: 0 where the connection broke.
        body: Its number in the file.
        timing: The answer's header `server-timing`.
    """

    left_s: float
    latency_s: float
    status: int
    body: int
    timing: str


class Wire:
    """Connections to one server."""

    def __init__(self, port: int, path: str, bodies: list[bytes]) -> None:
        self._port = port
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        self._requests = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.sent: list[Sent] = []
        self.begun = time.perf_counter()

    async def ask(self, number: int, due: float) -> None:
        """Send one request.

        Args:
            number: Of the request since the start.
            due: When it should leave, by the clock.
        """
        body = number % len(self._requests)
        status, timing, writer = 0, "", None
        try:
            # One that idled for minutes may have been closed.
            while self._idle and self._idle[-1][0].at_eof():
                self._idle.pop()[1].close()
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(self._requests[body])
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            await _read_body(reader, lines)
            status, timing = int(head.split(" ", 2)[1]), lines.get("server-timing", "")
            if lines.get("connection") == "close":
                writer.close()
            else:
                self._idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            if writer:
                writer.close()
        self.sent.append(Sent(due - self.begun, time.perf_counter() - due, status, body, timing))

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop()[1].close()


async def _read_body(reader: asyncio.StreamReader, lines: dict[str, str]) -> None:
    if "chunked" not in lines.get("transfer-encoding", ""):
        await reader.readexactly(int(lines.get("content-length", "0")))
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        await reader.readexactly(size + 2)
    await reader.readline()


async def closed_loop(wire: Wire, concurrency: int, goes_on: Callable[[], bool]) -> None:
    """Keep so many requests on their way, for as long as it goes on."""
    numbers = iter(range(1 << 60))

    async def caller() -> None:
        while goes_on():
            await wire.ask(next(numbers), time.perf_counter())

    await asyncio.gather(*(caller() for _ in range(concurrency)))


async def open_loop(wire: Wire, rate: float, goes_on: Callable[[], bool], seed: int) -> None:
    """Let requests leave on a schedule, for as long as it goes on."""
    gaps, due, number, tasks = random.Random(seed), time.perf_counter(), 0, set[asyncio.Task[None]]()
    while goes_on():
        await asyncio.sleep(due - time.perf_counter())
        task = asyncio.create_task(wire.ask(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number, due = number + 1, due + gaps.expovariate(rate)
    await asyncio.gather(*tasks)


async def run(options: argparse.Namespace) -> list[Sent]:
    """Send all requests."""
    wire = Wire(options.port, options.path, options.bodies.read_bytes().splitlines())

    def until(seconds: float) -> Callable[[], bool]:
        return lambda: time.perf_counter() < wire.begun + seconds

    if options.rate:
        flood = asyncio.create_task(open_loop(wire, options.rate, until(options.seconds), options.seed))
        if options.then_one_by_one:
            await asyncio.sleep(options.seconds)
            await closed_loop(wire, 1, until(options.seconds + options.then_one_by_one))
        await flood
    else:
        await closed_loop(wire, options.concurrency, until(options.seconds))
    wire.close()
    return wire.sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/predict")
    parser.add_argument("--bodies", type=Path, required=True, help="one body a line, sent in turn")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--then-one-by-one", type=float, metavar="S", help="for so many seconds after the last one left by schedule")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
