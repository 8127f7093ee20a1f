"""Proposes trials with Optuna's TPE, and tells it honestly how they ended.

Ray's `OptunaSearch` tells a trial that was stopped early as complete, with the value it had by then, and never tells one
whose score is not a number. Here an early-stopped trial is PRUNED, a dead or diverged one FAIL, and only a finished one COMPLETE.
Source of the method: Bergstra et al. 2011 (TPE); Falkner et al. 2018 for the multivariate kernel.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

SCORE = "score"
IS_LAST = "is_last"
HAS_DIVERGED = "has_diverged"


class TrialSearcher(OptunaSearch):
    """`OptunaSearch` for one score that is reported as the best so far.

    Args:
        space: Ray Tune's domains, nested.
        points: Configurations to try first, by path.
        num_samples: Trials planned; about a third of them, 4 to 10, explore before TPE learns.
        seed: Of the sampler. Proposals repeat exactly only when trials come one after the other.
    """

    def __init__(self, space: Mapping[str, Any], points: Sequence[Mapping[str, Any]], num_samples: int, seed: int) -> None:
        # Without this Optuna writes a line to standard error for every study and trial.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, min(10, num_samples // 3)), multivariate=True, constant_liar=True
        )
        super().__init__(
            space=self.convert_search_space(dict(space)),
            metric=SCORE,
            mode="max",
            points_to_evaluate=[dict(point) for point in points],
            sampler=sampler,
        )

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        if error or not result or result.get(HAS_DIVERGED):
            self.study.tell(trial, state=TrialState.FAIL)
        elif result[IS_LAST]:
            self.study.tell(trial, result[SCORE], state=TrialState.COMPLETE)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    @property
    def study(self) -> optuna.Study:
        """Optuna's record of all trials."""
        study: Any = self._ot_study
        return cast(optuna.Study, study)
