"""Stands before the routes and lets in who has a key for what is asked; an ASGI middleware.

Source: RFC 6750 for `Authorization: Bearer` and `WWW-Authenticate`, RFC 6585 for 429.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.errors import ServingError
from serving.keys.ring import KeyRing
from serving.keys.scopes import OPEN, SCOPE_OF, Wanted

_SCHEME = "bearer "
_KEY_HEADER = "x-api-key"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """Lets requests with a good key through, and tells what is inside which key it is.

    Args:
        app: The application inside.
        ring: The keys.
        wanted: Which scope a path wants.
        refuse: Answers what is refused.
    """

    def __init__(self, app: Any, ring: KeyRing, wanted: Wanted, refuse: Callable[[Request, ServingError], Response]) -> None:
        self._app = app
        self._ring = ring
        self._wanted = wanted
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or (wanted := self._wanted(scope["path"])) == OPEN:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            key = self._ring.admit(held_key(request), wanted, request.client.host if request.client else "")
        except ServingError as error:
            await self._refuse(request, error)(scope, receive, send)
            return
        scope.setdefault("state", {})["key_id"] = key.id
        await self._app(scope, receive, send)


def held_key(request: Request) -> str | None:
    """Return what a request sends as a key: `Authorization: Bearer KEY`, or `X-Api-Key: KEY`."""
    authorization = request.headers.get("authorization", "")
    if authorization[: len(_SCHEME)].lower() == _SCHEME:
        return authorization[len(_SCHEME) :].strip()
    return request.headers.get(_KEY_HEADER)


_REFUSALS = {
    "401": "No key came, or none that is good.",
    "403": "The key is not for this.",
    "429": "More than the key may ask; `Retry-After` says when it is worth asking again.",
}


def describe(document: dict[str, Any], refusal: dict[str, Any]) -> None:
    """Write into the API's document which paths want a key.

    Args:
        document: Of OpenAPI; changed.
        refusal: Describes the body of an answer that refuses.
    """
    bearer = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `python -m serving keys create`; `X-Api-Key` carries it as well.",
    }
    document["components"]["securitySchemes"] = {"key": bearer}
    for path, operations in document["paths"].items():
        scope = SCOPE_OF.get(path, "admin")
        for operation in operations.values() if scope != OPEN else ():
            operation["security"] = [{"key": [scope]}]
            operation["responses"] |= {status: {"description": said, "content": refusal} for status, said in _REFUSALS.items()}
