"""The branch of the error tree that belongs to serving; each carries its HTTP status.

TwoheadError
└── ServingError          500
    ├── BadRequest        400, 413, 415 or 422: the request is not one we can answer
    │   └── InvalidFields 422 with the first findings
    ├── Unauthorized      401: no key, or none that is good
    ├── Forbidden         403: the key is not for this
    ├── NotFound          404: there is no such model, version or head
    ├── LaterError        with Retry-After
    │   ├── TooManyRequests 429: more than the key may ask, or too many wrong keys
    │   └── Overloaded    503: the queue is full
    ├── DeadlineExceeded  504: the answer would have come too late
    ├── NotReady          503 with Retry-After: no version is loaded yet, or nothing can be computed
    ├── AnswerError       what the client raises for an error the server answered
    ├── KeyringError      a key that is kept is damaged, or is not there; never sent
    └── ScoringError      a table cannot be scored, or not into that folder; never sent
"""

import math
import traceback
from collections.abc import Sequence

from cluster.errors import TwoheadError

# A body can be wrong in a million places; so many findings are enough to mend it.
_MOST_FINDINGS = 20
# RFC 6750. It names no error where a key is wrong: whether one came at all is the owner's to know.
_CHALLENGE = 'Bearer realm="twohead"'


class ServingError(TwoheadError):
    """Something a caller is told as an HTTP status."""

    status = 500
    title = "internal error"

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside the status."""
        return {}


class BadRequest(ServingError):
    """The request is malformed or over a limit."""

    title = "bad request"

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type["BadRequest"], tuple[str, int]]:  # type: ignore[override]  # another argument than the base
        return type(self), (self.message, self.status)


class InvalidFields(BadRequest):
    """The body breaks its schema or a limit.

    Args:
        findings: Field path (like `texts.3`; empty for the whole body) and reason, without what was sent.
    """

    def __init__(self, findings: Sequence[tuple[str, str]]) -> None:
        field, reason = findings[0]
        super().__init__(f"{field or 'body'}: {reason}")
        self.findings = list(findings[:_MOST_FINDINGS])

    def __reduce__(self) -> tuple[type["InvalidFields"], tuple[list[tuple[str, str]]]]:  # type: ignore[override]  # other arguments than the base
        return type(self), (self.findings,)


class Unauthorized(ServingError):
    """No key came with the request, or none that is good."""

    status = 401
    title = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """How to come back."""
        return {"www-authenticate": _CHALLENGE}


class Forbidden(ServingError):
    """The key is good, but not for this.

    Args:
        message: What is wrong.
        scope: What the key would have to be for.
    """

    status = 403
    title = "forbidden"

    def __init__(self, message: str, scope: str) -> None:
        super().__init__(message)
        self.scope = scope

    def __reduce__(self) -> tuple[type["Forbidden"], tuple[str, str]]:
        return type(self), (self.message, self.scope)

    @property
    def headers(self) -> dict[str, str]:
        """What would be needed."""
        return {"www-authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{self.scope}"'}


class NotFound(ServingError):
    """What a request names is not served."""

    status = 404
    title = "not found"


class LaterError(ServingError):
    """It is worth asking again after some seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["LaterError"], tuple[str, float]]:  # type: ignore[override]  # another argument than the base
        return type(self), (self.message, self.retry_after_s)

    @property
    def headers(self) -> dict[str, str]:
        """When to come back."""
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


class TooManyRequests(LaterError):
    """A key asked more often than it may, or too many wrong keys came from one address."""

    status = 429
    title = "too many requests"


class Overloaded(LaterError):
    """More work comes before the request than `serving.max_queue_s` or its deadline allow."""

    status = 503
    title = "overloaded"


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its texts were computed."""

    status = 504
    title = "deadline exceeded"


class NotReady(ServingError):
    """No version is loaded yet, or nothing can be computed any more; nobody knows for how long."""

    status = 503
    title = "not ready"

    @property
    def headers(self) -> dict[str, str]:
        """When to come back: as the front says where it knows of no replica."""
        return {"retry-after": "1"}


class AnswerError(ServingError):
    """The server answered with an error, or not at all."""

    title = "server error"

    def __init__(self, message: str, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class KeyringError(ServingError):
    """A key that is kept is damaged, or is not there."""


class ScoringError(ServingError):
    """A table cannot be scored, or not into the folder that was named."""


def without_words(error: BaseException) -> str:
    """Tell an error's type and, in further lines, where it was raised; not its words, which may quote a text."""
    return "\n".join([type(error).__name__, *traceback.format_tb(error.__traceback__)]).rstrip("\n")
