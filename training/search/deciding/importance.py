"""How much each searched dimension moved the score: fANOVA over the trials of a search.

Source: Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance; Optuna's implementation.
"""

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState, create_trial

from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import distributions
from training.search.proposing.searcher import SCORE
from training.settings import TrainingSettings

# With fewer the forest behind it repeats chance.
_LEAST_TRIALS = 10
_SEED = 7


def importance(settings: TrainingSettings, histories: Sequence[TrialHistory]) -> dict[str, float]:
    """Return each dimension's share of the score's variance, the largest first; nothing where the trials are too few.

    Args:
        settings: With the search space.
        histories: Of the search's own trials; stopped ones count with the score they reached.
    """
    searched = distributions(settings)
    known = [one for one in histories if one.is_sound and set(one.point) == set(searched)]
    varied = {path: one for path, one in searched.items() if len({history.point[path] for history in known}) > 1}
    if len(known) < _LEAST_TRIALS or not varied or len({one.last[SCORE] for one in known}) == 1:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            create_trial(
                state=TrialState.COMPLETE,
                value=one.last[SCORE],
                params={path: one.point[path] for path in varied},
                distributions=varied,
            )
            for one in known
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=_SEED)
    return {path: float(share) for path, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}
