"""Answers what fails in a way that nobody foresaw, around all else: what is raised from here, Ray Serve logs with its words.

An error's words can hold a text. So its type is logged, and where it was raised, and it goes no further. It knows neither routes nor
models.
"""

import logging
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.errors import ServingError, without_words
from serving.keys.guard import Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class Unforeseen:
    """Catches every error of the application inside.

    Args:
        app: The application inside.
        name: Returns a request's id.
        respond: Answers a request that failed.
    """

    def __init__(self, app: Any, name: Callable[[Request], str], respond: Callable[[Request], Response]) -> None:
        self._app = app
        self._name = name
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            ServingError: An answer broke off, which its reader must not take for a whole one.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
            return
        except Exception as error:  # noqa: BLE001  # Starlette and Serve would log it with its words, whatever it is
            request = Request(scope)
            log.error("request %s failed: %s", self._name(request), without_words(error))
        # Not where the error is handled: it would go along as the context of this one.
        if is_begun:
            raise ServingError(f"the answer to request {self._name(request)} broke off")
        await self._respond(request)(scope, receive, send)
