"""The branch of the error tree that belongs to serving; each carries its HTTP status.

TwoheadError
└── ServingError          500
    ├── BadRequest        400, 413, 415 or 422: the request is not one we can answer
    │   └── InvalidFields 422 with every finding
    ├── NotFound          404: there is no such model, version or head
    ├── Overloaded        503 with Retry-After: the queue is full
    ├── DeadlineExceeded  504: the answer would have come too late
    ├── NotReady          503: no version is loaded yet
    ├── AnswerError       what the client raises for an error the server answered
    └── ScoringError      a table cannot be scored, or not into that folder; never sent
"""

from collections.abc import Sequence

from cluster.errors import TwoheadError

# A body can be wrong in a million places; so many findings are enough to mend it.
_MOST_FINDINGS = 20


class ServingError(TwoheadError):
    """Something a caller is told as an HTTP status."""

    status = 500
    title = "internal error"


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


class NotFound(ServingError):
    """What a request names is not served."""

    status = 404
    title = "not found"


class Overloaded(ServingError):
    """More work comes before the request than `serving.max_queue_s` or its deadline allow."""

    status = 503
    title = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["Overloaded"], tuple[str, float]]:  # type: ignore[override]  # another argument than the base
        return type(self), (self.message, self.retry_after_s)


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its texts were computed."""

    status = 504
    title = "deadline exceeded"


class NotReady(ServingError):
    """No version is loaded yet."""

    status = 503
    title = "not ready"


class AnswerError(ServingError):
    """The server answered with an error, or not at all."""

    title = "server error"

    def __init__(self, message: str, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class ScoringError(ServingError):
    """A table cannot be scored, or not into the folder that was named."""
