"""Notices where a call of the storage neither returns nor fails, as those of a file system whose server went away do for ever.

What waits for it cannot tell that from a long one, and a task that waits is not one that ended: nobody would ever hear of it. It does not
know what is asked of the storage.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)

# A store of objects that cannot be reached says so sooner, and a file server that another one replaces is back by then.
STALLED_S = 300.0


async def watched(call: asyncio.Future[Any], halted: str) -> None:
    """Wait until a call of the storage has ended, well or not; where it takes longer than `STALLED_S`, say so in the log.

    A replica goes on with what it knew, as where the storage says that it cannot be read: its failure is not the service's.

    Args:
        call: Made a moment ago. No error of it is raised here.
        halted: What does not go on while it does not return: "keys are not followed".
    """
    asked_at = datetime.now(UTC).isoformat(timespec="seconds")
    # Unlike wait_for(), it neither cancels what takes too long nor raises what went wrong.
    ended, _ = await asyncio.wait([call], timeout=STALLED_S)
    if ended:
        return
    log.warning("%s since %s: the storage does not answer", halted, asked_at)
    await asyncio.wait([call])
    log.warning("the storage, asked at %s, has answered", asked_at)
