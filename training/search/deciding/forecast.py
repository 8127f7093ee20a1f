"""What a search will still use: forecast from what its trials have used.

It knows neither Ray nor in which order trials come; `budget` counts, this looks ahead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.search.deciding.budget import Cost, as_planned, in_full, mean_cost, mean_epochs, spent_on, still_needed, times, together
from training.search.deciding.contest import explored_group
from training.search.proposing.ledger import TrialHistory


@dataclass(frozen=True)
class Forecast:
    """Looks ahead from what is known now.

    Attributes:
        histories: All trials so far.
        layers: Group of trials that explore → layers that its ladder climbs; 0 without a ladder.
        at_once: So many trials run at once.
    """

    histories: Sequence[TrialHistory]
    layers: Mapping[str, int]
    at_once: int

    @property
    def explored(self) -> list[TrialHistory]:
        """Return the trials that explore, not those that confirm."""
        return [one for one in self.histories if one.group in self.layers]

    @property
    def mean_cost(self) -> Cost:
        """What a trial that explores cost on average; nothing is 0 before the first has ended."""
        return mean_cost(self._known)

    def before(self, again: TrialHistory) -> Cost:
        """Forecast what a known configuration costs to train again: what it did cost, which with all layers is many times the mean.

        Nobody stops what trains again: where it was stopped, as much more as whole trainings have more epochs. On all texts it trains the
        epochs that are planned.
        """
        own = (explored_group(again.group), again.number)
        known = next((one for one in self.histories if (one.group, one.number) == own and one.epochs), None)
        whole = [one for one in self._known if one.last.get("is_last")]
        if known is None or not any(one["epoch"] for one in known.epochs):
            return mean_cost(whole) if whole else self.mean_cost
        # On all texts it has as many epochs as were best, and not more; maybe with another seed than that of the trial in the search.
        return as_planned(known, again.depths, again.planned) if again.planned else in_full(known, again.depths, mean_epochs(whole))

    def exploring(self, live: Iterable[TrialHistory], left: int) -> Cost:
        """Forecast what trials will still use that run, and as many as are left to propose.

        Those that were passed over cost nothing, and so will some that come.
        """
        ended = [one for one in self.explored if one.state or one.is_climbing]
        share = sum(one.is_sound or not one.state for one in ended) / len(ended) if ended else 1.0
        return self._together([*map(self._still_needed, live), *[times(self.mean_cost, share)] * left])

    def confirming(self, trials: Iterable[TrialHistory], live: Iterable[TrialHistory] = ()) -> Cost:
        """Forecast what it takes to train known configurations again, beside what such trainings that run will still use."""
        return self._together([*map(self.before, trials), *map(self._still_needed, live)])

    @property
    def _known(self) -> list[TrialHistory]:
        # Of what climbs just now only what it did before is known as a whole.
        return [one if one.state else one.before_climbing() for one in self.explored]

    def _still_needed(self, running: TrialHistory) -> Cost:
        if running.group not in self.layers:
            whole, spent = self.before(running), spent_on(running)
            return Cost(max(whole.wall_s - spent.wall_s, 0.0), max(whole.cpu_s - spent.cpu_s, 0.0))
        return still_needed(running, mean_epochs(self._known), self.layers[running.group]) or self.mean_cost

    def _together(self, costs: Iterable[Cost]) -> Cost:
        return together(costs, self.at_once)
