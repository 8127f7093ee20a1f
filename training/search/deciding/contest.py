"""Which configuration wins: the best mean over seeds, not the luckiest training.

A search looks at so many trials that its best score flatters. So the best few, the default configuration and equal weights are trained
again with other seeds, and those trainings alone decide. It does not know Ray, and not the test split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.errors import TuningError
from training.judging.comparison import WORDS_ALONE
from training.search.deciding.pareto import Pick, front, parse_pick, pick
from training.search.proposing.ledger import TrialHistory, sound
from training.search.proposing.searcher import HEAD_SCORES, SCORE
from training.search_settings import TuningSettings

MAIN_GROUP = "trial"
_CONFIRM = "confirm-"
_SINGLE = "single-"
REFIT_GROUP = "refit"
EQUAL_WEIGHTS = "equal weights"


@dataclass(frozen=True)
class Standing:
    """One configuration and how it did.

    Attributes:
        number: Of its trial in the search.
        origin: Who proposed it.
        searched: That trial.
        confirmed: The same with the other seeds that count, see `standings`; empty when nothing was confirmed.
        spare: The same with seeds that do not count, because others could not be trained with them any more.
        has_lost: A training that was to confirm it ended badly.
        picked: The one of these trainings that a Pareto rule picks.
    """

    number: int
    origin: str
    searched: TrialHistory
    confirmed: tuple[TrialHistory, ...]
    spare: tuple[TrialHistory, ...] = ()
    has_lost: bool = False
    picked: TrialHistory | None = None

    @property
    def trainings(self) -> tuple[TrialHistory, ...]:
        """All of them: the one of the search, and those with other seeds."""
        return (self.searched, *self.confirmed, *self.spare)

    @property
    def judged(self) -> tuple[TrialHistory, ...]:
        """The trainings that count: those with other seeds, or else the one of the search."""
        return self.confirmed or (self.searched,)

    @property
    def score(self) -> float:
        """Mean selection score over the trainings that count."""
        return float(np.mean([one.last[SCORE] for one in self.judged]))

    @property
    def head_scores(self) -> dict[str, float]:
        """Mean score of each head over the trainings that count."""
        heads = self.searched.last[HEAD_SCORES]
        return {head: float(np.mean([one.last[HEAD_SCORES][head] for one in self.judged])) for head in heads}

    @property
    def best(self) -> TrialHistory:
        """The training whose checkpoint is published: the best on validation; of equals the one of the search."""
        return self.picked or max(self.trainings, key=lambda one: float(one.last[SCORE]))


def single_group(head: str) -> str:
    """Name the group of trials that train one head alone."""
    return f"{_SINGLE}{head}"


def group_heads(group: str, heads: Sequence[str]) -> tuple[str, ...]:
    """Return the heads that trials of a group train.

    Args:
        group: Of an exploration, or of the trials that confirm one.
        heads: All.
    """
    explored = group.removeprefix(_CONFIRM)
    return (explored.removeprefix(_SINGLE),) if explored.startswith(_SINGLE) else tuple(heads)


def explored_group(group: str) -> str:
    """Name the group of trials whose configuration one of this group trains again."""
    return MAIN_GROUP if group == REFIT_GROUP else group.removeprefix(_CONFIRM)


def as_if_stopped(histories: Sequence[TrialHistory]) -> list[TrialHistory]:
    """Return what is known of a search that is stopped now: what explores ends with what it has, what trains again is left out.

    Args:
        histories: All trials, those that have not ended too.
    """
    # The first epochs of a training say less than what it came to in the search, whose place its score would take.
    known = [one for one in histories if one.state or (one.epochs and not one.group.startswith((_CONFIRM, REFIT_GROUP)))]
    return [replace(one, state=one.state or "stopped") for one in known]


def confirmations(histories: Sequence[TrialHistory], tuning: TuningSettings) -> list[TrialHistory]:
    """Name the trainings that will confirm: other seeds of the best few, the default, equal weights, and each head's own best.

    Args:
        histories: All trials so far, the explorations' ended.
        tuning: How many of the best, how many seeds.
    """
    if not tuning.confirm_top:
        return []
    named = []
    for group in dict.fromkeys(one.group for one in histories if not one.group.startswith((_CONFIRM, REFIT_GROUP))):
        ended = [one for one in sound(histories, group) if one.origin != WORDS_ALONE]
        is_main = group == MAIN_GROUP
        chosen = _ranked(ended, tuning if is_main else _scored(tuning))[: tuning.confirm_top if is_main else 1]
        if is_main:
            chosen += [one for one in ended if one.origin in ("default", EQUAL_WEIGHTS) and one not in chosen]
        named += [_again(one, one.seed + step) for step in range(1, tuning.confirm_seeds + 1) for one in chosen]
    return named


def _scored(tuning: TuningSettings) -> TuningSettings:
    # A model of one head has one score, and no rule over several.
    return tuning.model_copy(update={"mode": "score"})


def _again(history: TrialHistory, seed: int) -> TrialHistory:
    name = f"{_CONFIRM}{history.name.removeprefix(f'{MAIN_GROUP}-')}-{seed}"
    group = f"{_CONFIRM}{history.group}"
    return TrialHistory(name, group, history.number, dict(history.best_point), seed, "confirmation", depths=_needed_depths(history))


def _needed_depths(history: TrialHistory) -> tuple[int, ...]:
    """Return the part of the ladder that led to the best epoch."""
    return history.depths if (history.best_depth,) == history.depths[-1:] else history.depths[:1]


def refit(histories: Sequence[TrialHistory], tuning: TuningSettings) -> TrialHistory | None:
    """Name the training of the winner on training and validation texts together, if it is wanted and there is a winner.

    Args:
        histories: All trials, those that confirm too.
        tuning: Whether it is wanted.
    """
    # Ranking everything costs, and the agenda asks at every report.
    table = standings(histories, tuning) if tuning.refit else []
    return _on_all_texts(winner(table, tuning)[0].best) if table else None


def refit_of(best: TrialHistory, histories: Sequence[TrialHistory]) -> TrialHistory | None:
    """Find the training of a winner on all texts, if there is one that came to its end.

    Args:
        best: The winner's training that was best on validation.
        histories: All trials. A search that went on can have refits of earlier winners, or of the same one when another seed was its best.
    """
    return next((one for one in _refits(best, histories) if _is_whole(one)), None)


def lost_refit_of(best: TrialHistory, histories: Sequence[TrialHistory]) -> TrialHistory | None:
    """Find the training of a winner on all texts, if there is one that ended badly; see `refit_of`."""
    return next((one for one in _refits(best, histories) if one.state and not _is_whole(one)), None)


def _refits(best: TrialHistory, histories: Sequence[TrialHistory]) -> list[TrialHistory]:
    """Return the trainings of a winner on all texts, and none of another with another seed or length."""
    begun = [one for one in histories if one.group == REFIT_GROUP]
    # What words say by themselves is not trained.
    identity = _on_all_texts(best).identity if begun and best.origin != WORDS_ALONE else None
    return [one for one in begun if one.identity == identity]


def _on_all_texts(best: TrialHistory) -> TrialHistory:
    """Name the training of a winner on training and validation texts together, for as long as it was best after."""
    depths = _needed_depths(best)
    # What climbed did so from the best epoch of what it trained first.
    first = [one for one in best.epochs if not one.get("is_climbing")][-1]
    planned = (first["best_number"], best.last["best_number"] - first["epoch"]) if len(depths) > 1 else (best.last["best_number"],)
    # All that tells it from an earlier winner's: what the agenda has a training of by this name, it does not train again.
    name = "-".join(map(str, (REFIT_GROUP, best.number, best.seed, *planned)))
    point = best.best_point
    if any(one.get("average_score") is not None for one in best.epochs) and not _is_best_averaged(best):
        # Nothing will say again which is better: the validation texts are learned.
        point["average_epochs"] = False
    return TrialHistory(name, REFIT_GROUP, best.number, point, best.seed, REFIT_GROUP, depths=depths, planned=planned)


def _is_best_averaged(history: TrialHistory) -> bool:
    """Whether the average of the last epochs' weights was better than any epoch's own."""
    found = next((one for one in history.epochs if one["epoch"] == history.last["best_number"]), {})
    averaged = found.get("average_score")
    return averaged is not None and averaged > found["epoch_score"]


def _ranked(ended: Sequence[TrialHistory], tuning: TuningSettings) -> list[TrialHistory]:
    """Order trials from the best; in Pareto mode the rule picks again and again among those that are left."""
    left = sorted(ended, key=lambda one: (-float(one.last[SCORE]), one.number))
    if tuning.mode != "pareto" or not left:
        return left
    rule, ranked = parse_pick(tuning.pick, list(left[0].last[HEAD_SCORES])), []
    while left:
        chosen = pick({one.number: one.last[HEAD_SCORES] for one in left}, rule).trial
        ranked += [one for one in left if one.number == chosen]
        left = [one for one in left if one.number != chosen]
    return ranked


def standings(histories: Sequence[TrialHistory], tuning: TuningSettings, group: str = MAIN_GROUP) -> list[Standing]:
    """Put each configuration of a group together with the trainings that confirm it, by number.

    Seeds are trained with one after the other, by the best configuration first, and a budget or a signal may end that anywhere. So those
    seeds count that all have been trained with which are to be confirmed now: a mean of two would lose to, or win over, a mean of one.

    Args:
        histories: All trials.
        tuning: Which configurations are to be confirmed.
        group: Of the configurations.
    """
    again = [one for one in histories if one.group == f"{_CONFIRM}{group}"]
    ended: dict[int, list[TrialHistory]] = {}
    for one in sorted((one for one in again if _is_whole(one)), key=lambda one: one.seed):
        ended.setdefault(one.number, []).append(one)
    lost = {one.number for one in again if is_lost(one)}
    chosen = {one.number for one in confirmations(histories, tuning) if one.group == f"{_CONFIRM}{group}"}
    seeds = _whole_rounds({number: {one.seed for one in own} for number, own in ended.items()}, lost, chosen)
    return [
        Standing(
            *(one.number, one.origin, one),
            confirmed=tuple(again for again in ended.get(one.number, []) if again.seed in seeds),
            spare=tuple(again for again in ended.get(one.number, []) if again.seed not in seeds),
            has_lost=one.number in lost,
        )
        for one in sound(histories, group)
    ]


def is_lost(history: TrialHistory) -> bool:
    """Whether a training was to confirm and ended badly: nobody stops one early, so it is "stopped" only where a climb died."""
    return history.group.startswith(_CONFIRM) and bool(history.state) and not _is_whole(history)


def _is_whole(history: TrialHistory) -> bool:
    return history.state == "finished" and bool(history.epochs)


def _whole_rounds(seeds: Mapping[int, set[int]], lost: set[int], chosen: set[int]) -> set[int]:
    """Return the seeds that count, by the number and seeds of each configuration that has been trained with any.

    They are those that all have been trained with. Where many trainings run at once a signal may leave none: then it is the one that most
    have, the first of equals, and who lacks it was not confirmed.
    """
    steady = [number for number in seeds if number not in lost]
    # Who is no longer among the best, since the search went on with more trials, waits for seeds that never come.
    counted = [number for number in steady if number in chosen] or steady or list(seeds)
    if not counted:
        return set()
    common = set.intersection(*(seeds[number] for number in counted))
    shares = Counter(sorted(seed for number in counted for seed in seeds[number]))
    return common or {shares.most_common(1)[0][0]}


def winner(group: Sequence[Standing], tuning: TuningSettings) -> tuple[Standing, str]:
    """Choose among the confirmed configurations, or among all where none is; of equals the earlier.

    Returns:
        The winner, and what a person should know about the choice ("" if nothing).

    Raises:
        TuningError: There is none.
    """
    if not group:
        raise TuningError("no trial brought a score", "look into Ray's log of a trial, or try one with --set training.tuning.num_samples=1")
    # A configuration whose trainings partly died would be judged by fewer, the lucky ones. What words say no seed changes.
    trained = [one for one in group if one.origin != WORDS_ALONE]
    steady = [one for one in trained if one.confirmed and not one.has_lost] or trained
    most = max((len(one.confirmed) for one in steady), default=0)
    numbers = {one.number for one in steady if len(one.confirmed) == most}
    candidates = [one for one in group if one.number in numbers or one.origin == WORDS_ALONE]
    if tuning.mode == "pareto" and len(candidates[0].head_scores) > 1:
        rule = _rule(candidates, tuning)
        picked = pick({one.number: one.head_scores for one in candidates}, rule)
        best = next(one for one in candidates if one.number == picked.trial)
        kept = pick({at: one.last[HEAD_SCORES] for at, one in enumerate(best.trainings)}, rule)
        return replace(best, picked=best.trainings[kept.trial]), picked.note
    return max(candidates, key=lambda one: (one.score, -one.number)), ""


def _rule(candidates: Sequence[Standing], tuning: TuningSettings) -> Pick:
    return parse_pick(tuning.pick, list(candidates[0].head_scores))


def pareto_front(group: Sequence[Standing]) -> list[int]:
    """Return the numbers of the configurations no other is better than in every head, by what the search itself measured."""
    scores: list[Mapping[str, float]] = [one.searched.last[HEAD_SCORES] for one in group]
    return [group[position].number for position in front([list(one.values()) for one in scores])] if group else []
