"""When a client asks again, where, and when it gives up. It knows neither texts nor connections.

Sources: Google's SRE book, chapter 21, Handling Overload, for a budget of retries; AWS's Architecture Blog, 2015, Exponential Backoff And
Jitter, for waits that differ.
"""

import random
import time

# Waits between attempts when the server names none: doubled each time, up to the last.
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_UNAVAILABLE = 503
_RETRIED = (429, 502, _UNAVAILABLE)


class Budget:
    """How many requests may be sent again: one for every ten that are sent, and a few at the start.

    Without an end to them, retries are what keeps a full server full.
    """

    _REQUESTS_A_RETRY, _MOST_RETRIES = 10, 10

    def __init__(self) -> None:
        self._most = self._left = self._REQUESTS_A_RETRY * self._MOST_RETRIES

    def earn(self) -> None:
        """Take in a request."""
        self._left = min(self._left + 1, self._most)

    def spend(self) -> bool:
        """Take a retry out, if there is one."""
        if self._left < self._REQUESTS_A_RETRY:
            return False
        self._left -= self._REQUESTS_A_RETRY
        return True


class Shared:
    """What the requests of one client know together: how many may be sent again, and which address to ask first.

    Args:
        addresses: How many there are.

    Attributes:
        first: The address that answered last, or the one after it where it has failed since.
    """

    def __init__(self, addresses: int = 1) -> None:
        self.budget, self.addresses, self.first = Budget(), addresses, 0


class Attempts:
    """The attempts of one request. After a failure the next address is asked, at once while there is one that was not.

    Args:
        retries: At most so many after the first.
        timeout_s: For all of them.
        shared: Of the client.

    Attributes:
        address: The one to ask now.
    """

    def __init__(self, retries: int, timeout_s: float, shared: Shared) -> None:
        self.address = self._first = shared.first
        self._shared = shared
        self._left = retries
        self._wait_s = _FIRST_WAIT_S
        self._deadline = time.monotonic() + timeout_s
        shared.budget.earn()

    @property
    def share_s(self) -> float:
        """Time for the next attempt: of addresses that were not asked yet, each gets its share of what is left."""
        unasked = self._shared.addresses - (self.address - self._first) % self._shared.addresses
        return max((self._deadline - time.monotonic()) / unasked, 0.001)

    def after_response(self, status: int, retry_after: str) -> float | None:
        """Return the seconds to wait before asking again; None takes this response.

        Args:
            status: Of the response.
            retry_after: Its header, or "".
        """
        if status not in _RETRIED:
            self._shared.first = self.address
            return None
        self._leave()
        # A replica that is full says for how long. Who does not is a proxy before nobody: no replica had the request.
        return self._next(float(retry_after) if retry_after.isdigit() else None, is_free=status == _UNAVAILABLE and not retry_after)

    def after_failure(self, *, is_sent: bool, is_late: bool) -> float | None:
        """Return the seconds to wait before asking again; None gives up.

        Args:
            is_sent: Whether the request may have got there. Where it did not, asking elsewhere is no second request.
            is_late: Nothing came in time.
        """
        self._leave()
        if is_sent and is_late and self._following == self._first:
            return None
        return self._next(None, is_free=not is_sent)

    @property
    def _following(self) -> int:
        return (self.address + 1) % self._shared.addresses

    def _leave(self) -> None:
        if self._shared.first == self.address:
            # The next request need not find out for itself.
            self._shared.first = self._following

    def _next(self, asked_s: float | None, *, is_free: bool = False) -> float | None:
        following = self._following
        # Callers refused together should not come back together.
        wait_s = (asked_s if asked_s is not None else self._wait_s) * random.uniform(1.0, 1.25)  # noqa: S311  # no secret
        if following != self._first:
            wait_s = 0.0
        is_free = is_free and following != self._first
        if time.monotonic() + wait_s > self._deadline or not (is_free or (self._left > 0 and self._shared.budget.spend())):
            return None
        if following == self._first:
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._left -= not is_free
        self.address = following
        return wait_s
