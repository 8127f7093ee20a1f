"""A trial that needs no training: what words say by themselves, and nothing else.

A model says so before it has trained (`trials.build`), so there is nothing of it to save: a search that is stopped before its first
trial has a score can still be published, and one in which no training was better publishes that. It does not know Ray.
"""

from collections.abc import Sequence

from training.fitting.fit import Epoch
from training.judging.comparison import WORDS_ALONE
from training.judging.metrics import head_scores, joint_accuracy, selection_score
from training.search.deciding.contest import MAIN_GROUP, standings, winner
from training.search.proposing.ledger import TrialHistory
from training.search.proposing.search_space import first_points
from training.search.proposing.searcher import SCORE
from training.search.trials.assignment import Assignment
from training.search.trials.first_look import words_figures, words_say
from training.search.trials.work import report_of


def words_alone(assignment: Assignment, histories: Sequence[TrialHistory]) -> TrialHistory | None:
    """Score what words say by themselves on the validation texts, as a trial that has ended.

    Args:
        assignment: What all trials share.
        histories: Those there are; it gets the number after theirs.

    Returns:
        Nothing where words speak for some heads only, trials begin with an earlier version's weights, or there are no validation texts.
    """
    figures = words_figures(assignment)
    if figures is None or assignment.start:
        return None
    settings, labels = assignment.settings, assignment.labels["validation"]
    score = selection_score(head_scores(figures, settings.tuning.score_metrics), settings.tuning.score_weights)
    joint = joint_accuracy(labels, {head: scores.argmax(axis=1) for head, scores in words_say(assignment).items()})
    report = report_of(Epoch(0, None, score, score, 0, figures, figures, joint, is_last=True), settings)
    number = 1 + max((one.number for one in histories if one.group == MAIN_GROUP), default=-1)
    point = first_points(settings)[0]
    return TrialHistory("words", MAIN_GROUP, number, point, settings.fit.seed, WORDS_ALONE, epochs=[report], state="finished")


def words_if_better(assignment: Assignment, histories: Sequence[TrialHistory]) -> list[TrialHistory]:
    """Return what words say by themselves where no configuration is better on the validation texts, in the mean over its trainings.

    Where none has a score, that is better than none; not where trials failed, which is an error to be told.

    Args:
        assignment: What all trials share.
        histories: All trials, ended.

    Returns:
        Nothing where a rule picks among several scores of what trained: it was made for what was searched.
    """
    tuning = assignment.settings.tuning
    table = standings(histories, tuning)
    if not table:
        words = None if any(one.has_failed for one in histories) else words_alone(assignment, histories)
        return [words] if words is not None else []
    words = words_alone(assignment, histories) if tuning.mode == "score" else None
    return [words] if words is not None and words.last[SCORE] > winner(table, tuning)[0].score else []
