"""What a replica tells whoever decides how many there should be.

The names are `policy`'s, which stands alone: Serve's controller, where it runs, has none of our code.
"""

from typing import TYPE_CHECKING

from serving.scaling.policy import ASKED, SPEED, WAITING

if TYPE_CHECKING:
    from serving.scheduling.scheduler import Scheduler


def report(scheduler: "Scheduler") -> dict[str, float]:
    """Return a replica's figures, as Serve's `record_autoscaling_stats` wants them."""
    return {WAITING: scheduler.open_tokens, ASKED: scheduler.asked_tokens, SPEED: scheduler.tokens_per_s}
