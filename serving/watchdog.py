"""Notices where a call of the storage neither returns nor fails, as those of a file system whose server went away do for ever.

What waits for it cannot tell that from a long one, and a task that waits is not one that ended: nobody would ever hear of it. It does not
know what is asked of the storage.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from serving.errors import NotReady

log = logging.getLogger(__name__)

# A store of objects that cannot be reached says so sooner, and a file server that another one replaces is back by then.
STALLED_S = 300.0


class Watchdog:
    """Waits for calls of the storage; lives on one event loop.

    Args:
        halted: What does not go on while one does not return, in words for the log: "keys are not followed".
    """

    def __init__(self, halted: str) -> None:
        self._halted = halted
        self._reason = ""

    async def wait(self, call: asyncio.Future[Any]) -> None:
        """Wait until a call has ended, well or not; once it takes longer than `STALLED_S`, say so in the log and to whoever asks.

        Args:
            call: Made a moment ago. No error of it is raised here.
        """
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        # Unlike wait_for(), it neither cancels what takes too long nor raises what went wrong.
        ended, _ = await asyncio.wait([call], timeout=STALLED_S)
        if ended:
            return
        self._reason = f"{self._halted} since {asked_at}: the storage does not answer"
        log.warning("%s", self._reason)
        try:
            await asyncio.wait([call])
        finally:
            self._reason = ""
        log.info("the storage, asked at %s, has answered", asked_at)

    def require_answers(self) -> None:
        """Pass where the storage answers, or may yet.

        Raises:
            NotReady: A call has not returned for `STALLED_S`.
        """
        if self._reason:
            raise NotReady(self._reason)
