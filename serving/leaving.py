"""Ends the work on a request whose client went away, where Serve was told not to look for that.

For every request Serve makes two tasks and a queue to hear of a client that leaves; the front tells it not to (`cluster.front`), because
most answers are there before a client could have left. Here nobody is listened for until an answer is late. It knows neither routes nor
models.
"""

import asyncio
from typing import Any

from serving.keys.guard import Message, Receive, Scope, Send

# Serve's own header, and the value with which it leaves clients to us.
HEADER = b"x-request-disconnect-disabled"
DISABLED = b"?1"
# Answers that are there before this cost no task; a client that left is noticed as late at most.
LATE_S = 0.05
# As Serve itself counts those who left.
_STATUS = 499


class Leaving:
    """Cancels the application inside when its client is gone.

    Args:
        app: The application inside.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or (HEADER, DISABLED) not in scope["headers"]:
            await self._app(scope, receive, send)
            return
        watch = _Watch(receive)
        try:
            await self._app(scope, watch.receive, send)
        except asyncio.CancelledError:
            if not watch.is_gone:
                raise
            watch.forgive()
            # Nobody reads it; Serve counts it.
            await send({"type": "http.response.start", "status": _STATUS, "headers": []})
            await send({"type": "http.response.body"})
        finally:
            watch.end()


class _Watch:
    """Listens for one client's leaving, from some time after its body came.

    Args:
        receive: Of the connection.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._listening: asyncio.Task[None] | None = None
        self._asking = asyncio.current_task()
        self.is_gone = False

    async def receive(self) -> Message:
        """Give the application the next message.

        Raises:
            CancelledError: The client is gone.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
            raise asyncio.CancelledError
        if not message.get("more_body", False):
            self._timer = self._loop.call_later(LATE_S, self._listen)
        return message

    def _listen(self) -> None:
        self._listening = self._loop.create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        # After an answer this would say the same, but whoever answered has ended the listening by then.
        if (await self._receive())["type"] == "http.disconnect" and self._asking is not None:
            self.is_gone = self._asking.cancel()

    def forgive(self) -> None:
        """Let the task go on, if it was cancelled from here."""
        if self._asking is not None and self._listening is not None:
            self._asking.uncancel()

    def end(self) -> None:
        """Listen no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listening is not None:
            self._listening.cancel()
