"""A client that leaves ends the work on its request, and one that stays costs nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serving.leaving import DISABLED, HEADER, LATE_S, Leaving

Message = dict[str, Any]
LEFT = {"type": "http.disconnect"}


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


class Connection:
    """What a server gives an application: a body in pieces, then nothing until the client leaves."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent: list[Message] = []
        self.listened = 0
        self._coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        self._coming.append({"type": "http.request", "body": b"", "more_body": False})
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        if self._coming and not self._left.is_set():
            return self._coming.pop(0)
        self.listened += 1
        await self._left.wait()
        return LEFT

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]


Receive = Callable[[], Awaitable[Message]]


class Inside:
    """An application that reads a body, works until it may end, and answers."""

    def __init__(self) -> None:
        self.body = b""
        self.began, self.may_end = asyncio.Event(), asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message["body"]
            more = message["more_body"]
        self.began.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def test_who_leaves_while_an_answer_is_late_ends_its_work() -> None:
    inside, connection = Inside(), Connection(b"a", b"b")
    asking = asyncio.create_task(Leaving(inside)(scope((HEADER, DISABLED)), connection.receive, connection.send))
    await inside.began.wait()
    connection.leave()
    await asyncio.wait_for(asking, 10)
    assert (inside.body, inside.cancelled, connection.statuses()) == (b"ab", True, [499])
    assert asking.cancelling() == 0


async def test_who_leaves_while_its_body_comes_ends_its_work() -> None:
    inside, connection = Inside(), Connection(b"a")
    connection.leave()
    await Leaving(inside)(scope((HEADER, DISABLED)), connection.receive, connection.send)
    assert (inside.began.is_set(), connection.statuses()) == (False, [499])


async def test_who_stays_is_answered_however_late() -> None:
    inside, connection = Inside(), Connection()
    asking = asyncio.create_task(Leaving(inside)(scope((HEADER, DISABLED)), connection.receive, connection.send))
    await inside.began.wait()
    await asyncio.sleep(2 * LATE_S)  # the time itself is what is tested
    assert connection.listened == 1
    inside.may_end.set()
    await asyncio.wait_for(asking, 10)
    assert connection.statuses() == [200]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_answer_in_time_costs_no_task() -> None:
    inside, connection = Inside(), Connection()
    inside.may_end.set()
    before = asyncio.all_tasks()
    await Leaving(inside)(scope((HEADER, DISABLED)), connection.receive, connection.send)
    assert (connection.statuses(), connection.listened, asyncio.all_tasks()) == ([200], 0, before)


async def test_a_cancellation_by_others_goes_on() -> None:
    inside, connection = Inside(), Connection()
    asking = asyncio.create_task(Leaving(inside)(scope((HEADER, DISABLED)), connection.receive, connection.send))
    await inside.began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (inside.cancelled, connection.sent) == (True, [])


@pytest.mark.parametrize("headers", [(), ((HEADER, b"?0"),), ((b"x-other", DISABLED),)])
async def test_where_serve_looks_nobody_else_does(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    inside, connection = Inside(), Connection()
    asking = asyncio.create_task(Leaving(inside)(scope(*headers), connection.receive, connection.send))
    await inside.began.wait()
    await asyncio.sleep(2 * LATE_S)  # the time itself is what is tested
    assert connection.listened == 0
    inside.may_end.set()
    await asking


async def test_what_is_no_request_is_passed_on() -> None:
    seen = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    connection = Connection()
    await Leaving(inside)({"type": "lifespan"}, connection.receive, connection.send)
    assert seen == ["lifespan"]
