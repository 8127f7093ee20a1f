"""The record of a search: everything it found, as JSON, for the report, the model card and the manifest.

It holds rows and classes, never texts. It does not know Ray, files, or how anything was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from training.checkpoint import code_revision, library_versions
from training.judging.abstention import ALWAYS_ABSTAIN
from training.judging.comparison import WORDS_ALONE, headline
from training.judging.judge import HeadCalibration, reported_split
from training.judging.metrics import head_scores, selection_score
from training.manifest import EncoderFacts, HeadFacts, ModelFacts
from training.search.deciding.budget import used_by
from training.search.deciding.contest import (
    EQUAL_WEIGHTS,
    MAIN_GROUP,
    Standing,
    lost_refit_of,
    pareto_front,
    refit_of,
    single_group,
    standings,
)
from training.search.deciding.importance import importance
from training.search.deciding.ladder import Agreement, Ladder
from training.search.prepared import Prepared
from training.search.proposing.ledger import PASSED_OVER, TrialHistory, sound
from training.search.proposing.search_space import TrialSettings, first_points, trial_settings
from training.search.trials.assignment import Order
from training.search.trials.found_heads import FirstRung, read_rung
from training.search_settings import TuningSettings
from training.settings import TrainingSettings


def make_record(
    prepared: Prepared,
    histories: Sequence[TrialHistory],
    best: Standing,
    judged: Mapping[str, Any],
    comparisons: list[dict[str, Any]],
    elapsed_s: float,
    early: str = "",
) -> dict[str, Any]:
    """Put the record together.

    Args:
        prepared: The search.
        histories: All its trials.
        best: The winning configuration.
        judged: Of `judge.account`, about the published model.
        comparisons: Of `comparison.compare`.
        elapsed_s: Wall seconds, without the time it lay interrupted.
        early: What is said of a search that has not come to its end.
    """
    settings, dataset, source = prepared.settings, prepared.dataset, prepared.source
    rung = read_rung(prepared.storage, prepared.folder, prepared.settings.heads)
    table, trial = standings(histories, settings.tuning), trial_settings(settings, best.best.best_point)
    agreements, main = _agreements(prepared, rung, histories), [one for one in histories if one.group == best.searched.group]
    record: dict[str, Any] = {
        "name": prepared.name,
        "created": prepared.plan.begun,
        "seconds": elapsed_s,
        "cpu_seconds": sum(used_by(one).cpu_s for one in histories) + (rung.cpu_s if rung else 0.0),
        "worker_bytes": max((int(epoch.get("worker_bytes", 0)) for one in histories for epoch in one.epochs), default=0),
        "first_rung": {head: {"scores": one.scores, "candidates": one.candidates} for head, one in rung.heads.items()} if rung else {},
        "rungs": [asdict(one) for one in agreements],
        "version": None,
        "heads": {head: _head(head, trial, prepared, judged) for head in settings.heads},
        "tuning": settings.tuning.model_dump(mode="json"),
        "best": best.number,
        "published": {"name": best.best.name, "seed": best.best.seed, "score": best.best.last["score"]},
        "trials": [_trial(one, settings.tuning) for one in sorted(main, key=lambda one: one.number)],
        "confirmed": sorted((_confirmed(one) for one in table if one.confirmed), key=lambda one: (-one["mean"], one["position"])),
        "front": pareto_front(table) if settings.tuning.mode == "pareto" else [],
        "importance": importance(settings, [one for one in main if one.origin != WORDS_ALONE]),
        "splits": {split: len(examples) for split, examples in dataset.splits().items()},
        **judged,
        "comparisons": comparisons,
        "notes": [str(note) for note in dataset.notes],
        "data_digest": dataset.digest,
        "encoder": _encoder(prepared).model_dump() | {"sha256": source.sha256},
        "settings": settings.model_dump(mode="json"),
        "libraries": library_versions(),
        "code_revision": code_revision(),
    }
    unfinished = [*_cut_short(settings, histories, early), *_not_refitted(settings, histories, best, early), *_spare(table)]
    record["notes"] += [*_unreached(judged), *_equal_weights(settings, main), *unfinished, *_less_than_named(settings, table, best)]
    record["notes"] += [*_words(prepared), *_heads_alone(rung, best), *_climbs(histories, agreements)]
    return record | {"headline": headline(record, reported_split(dataset))}


def _agreements(prepared: Prepared, rung: FirstRung | None, histories: Sequence[TrialHistory]) -> Sequence[Agreement]:
    settings = prepared.settings
    if not settings.tuning.ladder:
        return ()
    ladder = Ladder(settings, prepared.source.layers, rung, settings.tuning.reduction_factor)
    return ladder.agreements([one for one in histories if one.group == MAIN_GROUP])


def _unreached(judged: Mapping[str, Any]) -> list[str]:
    """Say which heads answer nothing, because no threshold reaches what was wanted."""
    heads = [head for head, one in judged["abstention"].items() if one["threshold"] == ALWAYS_ABSTAIN]
    return [f"head {head!r} abstains always: no threshold reaches its target on the validation texts" for head in heads]


def _equal_weights(settings: TrainingSettings, histories: Sequence[TrialHistory]) -> list[str]:
    if any(one.origin == EQUAL_WEIGHTS for one in histories):
        return []
    default = trial_settings(settings, first_points(settings)[0])
    is_equal = len({one.loss_weight for one in default.heads.values()}) == 1 and default.fit.balancing == "fixed"
    said = "the default configuration has equal loss weights, so it is that baseline too"
    return [said if is_equal else "no trial had equal loss weights"]


def _words(prepared: Prepared) -> list[str]:
    """Say what words reach by themselves, and which heads add it to what they read from the encoder."""
    reached = ", ".join(f"{head} {one.score:.3f}" for head, one in prepared.assignment.worded.items())
    said = f"words by themselves reach, by cross-validation over the training texts: {reached}; these heads add them up"
    return [said] if reached else []


def _heads_alone(rung: FirstRung | None, best: Standing) -> list[str]:
    """Say what heads alone reached, and whether training the encoder paid."""
    if rung is None or not any(one.best for one in rung.heads.values()):
        return []
    reached = ", ".join(f"{head} {one.scores[0]:.3f} (best of {one.candidates})" for head, one in rung.heads.items() if one.best)
    said = [f"heads on the frozen encoder reach, by cross-validation over the training texts: {reached}"]
    if best.best.last.get("best_number") == 0 and best.origin != WORDS_ALONE:
        said.append(
            "training the encoder brought nothing on the validation texts: the published model is the pretrained encoder with trained heads"
        )
    return said


def _climbs(histories: Sequence[TrialHistory], agreements: Sequence[Agreement]) -> list[str]:
    """Say what the ladder's rungs say of each other, and whether climbing paid."""
    said = []
    for one in agreements:
        if one.correlation is not None:
            doubt = ", so the lower one was no longer asked" if one.is_doubtful else ""
            said.append(
                f"rank correlation between {one.lower} and {one.higher}, "
                f"over the {one.pairs} configurations that were let through: {one.correlation:+.2f}{doubt}"
            )
        elif one.pairs and one.is_unknown:
            said.append(f"how {one.lower} and {one.higher} agree is not known: {one.pairs} configurations have a score on both, too few")
    main = [one for one in histories if one.group == MAIN_GROUP]
    if passed := sum(one.state == PASSED_OVER for one in main):
        said.append(f"{passed} of {len(main)} configurations were passed over for what their heads did on the frozen encoder")
    if climbed := [one for one in main if one.is_climbing and one.is_sound]:
        gained = sum((one.best_depth,) == one.depths[-1:] for one in climbed)
        said.append(f"{len(climbed)} configurations went on to train all the layers they may, {gained} of them with a gain")
    return said


def _spare(table: Sequence[Standing]) -> list[str]:
    """Say where the search ended before all that were to be confirmed had been trained with a seed."""
    spare = [again for one in table for again in one.spare]
    seeds = ", ".join(str(seed) for seed in sorted({one.seed for one in spare}))
    return [f"trainings with seed {seeds} count in no mean: not all that were to be confirmed had been trained with it"] if spare else []


def _cut_short(settings: TrainingSettings, histories: Sequence[TrialHistory], early: str = "") -> list[str]:
    """Say where a limit, or who stopped the search, left one model per head without a score, or with fewer trials than it was promised."""
    tuning = settings.tuning
    if not tuning.compare_single or len(settings.heads) == 1:
        return []
    if missing := [repr(head) for head in settings.heads if not sound(histories, single_group(head))]:
        return [f"no model of head {' or '.join(missing)} alone has a score, so there is no comparison with one model per head"]
    begun = {head: sum(one.group == single_group(head) for one in histories) for head in settings.heads}
    planned = tuning.num_samples
    if tuning.time_budget_s or tuning.cpu_budget_s:
        # Nobody was promised more than all heads together had.
        planned = min(planned, sum(one.group == MAIN_GROUP and one.origin != WORDS_ALONE for one in histories))
    given = [name for name, limit in (("time", tuning.time_budget_s), ("CPU", tuning.cpu_budget_s)) if limit]
    cause = "an early end" if early else f"the {' or the '.join(given) or 'time'} budget"
    return [
        f"{cause} cut the search for head {head!r} alone short: {count} of {planned} trials, so that comparison is unfair to it"
        for head, count in begun.items()
        if count < planned
    ]


def _less_than_named(settings: TrainingSettings, table: Sequence[Standing], best: Standing) -> list[str]:
    """Say where a baseline came to less than its name says: it was stopped, or the ladder did not let it train all its layers."""
    named = {"default": "the default configuration", EQUAL_WEIGHTS: "the default with equal loss weights"}
    notes = []
    for side in table:
        if side.origin not in named or side.number == best.number:
            continue
        if any(one.depths and one.depths[-1] > settings.fit.frozen_layers for one in side.judged):
            how = "trained its top layers alone, as the ladder let others go on"
        elif any(one.state == "stopped" for one in side.judged):
            how = "was stopped before its last epoch"
        else:
            continue
        notes.append(f"{named[side.origin]} {how}: the comparison with it is with what that came to")
    return notes


def _not_refitted(settings: TrainingSettings, histories: Sequence[TrialHistory], best: Standing, early: str = "") -> list[str]:
    """Say that the published model has not learned the validation texts, where that was wanted."""
    if not settings.tuning.refit or best.origin == WORDS_ALONE or refit_of(best.best, histories) is not None:
        return []
    said = "the winner was not trained once more on training and validation texts together, as tuning.refit wants"
    cause = "the search was stopped before" if early else "no time was left"
    if (lost := lost_refit_of(best.best, histories)) is not None and not early:
        # One of two depths that died is "stopped", as a climb of the search is, which keeps what it had before.
        how = lost.error or f"was {lost.state}" if lost.state == "stopped" else lost.state
        cause = f"that training {'ran ' if how.startswith('out of memory') else ''}{how}"
    return [f"{said}: {cause}"]


def _head(head: str, trial: TrialSettings, prepared: Prepared, judged: Mapping[str, Any]) -> dict[str, Any]:
    chosen = trial.heads[head]
    return {
        "classes": list(prepared.dataset.classes[head]),
        "ordered": chosen.ordered,
        "loss": chosen.loss,
        "class_weighting": chosen.class_weighting,
        "metric": prepared.settings.tuning.score_metrics.get(head, "macro_f1"),
        "weight": chosen.loss_weight,
        "hidden_size": chosen.hidden_size,
        "dropout": chosen.dropout,
        "temperature": judged["calibration"][head]["temperature"],
        "threshold": judged["abstention"][head]["threshold"],
        "target": judged["abstention"][head]["target"],
    }


def _trial(history: TrialHistory, tuning: TuningSettings) -> dict[str, Any]:
    last = history.last
    return {
        "position": history.number,
        "state": history.state,
        "error": history.error,
        "score": last["score"] if history.is_sound else None,
        "epoch": last.get("epoch", 0),
        "best_epoch": last.get("best_number", 0),
        "seconds": used_by(history).wall_s,
        "cpu_seconds": used_by(history).cpu_s,
        "point": history.best_point,
        "origin": history.origin,
        "metrics": last.get("best_metrics", {}),
        "epochs": [_epoch(one, tuning) for one in history.epochs if "metrics" in one],
    }


def _epoch(report: Mapping[str, Any], tuning: TuningSettings) -> dict[str, Any]:
    heads = head_scores(report["metrics"], tuning.score_metrics)
    return {"number": report["epoch"], "loss": report["loss"], "score": selection_score(heads, tuning.score_weights), "heads": heads}


def _confirmed(standing: Standing) -> dict[str, Any]:
    scores = [{"seed": one.seed, "score": one.last["score"], "heads": one.last["head_scores"]} for one in standing.confirmed]
    return {"position": standing.number, "scores": scores, "mean": standing.score}


def _encoder(prepared: Prepared) -> EncoderFacts:
    source = prepared.source
    return EncoderFacts(name=source.name, model_type=source.model_type, sha256=source.sha256, pooling=source.pooling)


def _frozen_layers(prepared: Prepared, history: TrialHistory, chosen: TrialSettings) -> int:
    """Return how many layers of a published model are as pretrained."""
    if history.last.get("best_number") == 0:
        return prepared.source.layers
    return chosen.fit.frozen_layers if history.best_depth is None else history.best_depth


def _trainings(prepared: Prepared, history: TrialHistory) -> list[dict[str, Any]]:
    """Say what was trained one after the other: layers from the top, at which rate, for how many epochs at most."""
    order = Order(history.name, history.group, history.number, tuple(prepared.settings.heads), history.best_point, history.seed)
    fits = [one.fit for one in replace(order, depths=history.depths).trainings(prepared.settings)]
    return [{"frozen_layers": one.frozen_layers, "epochs": one.epochs, "encoder_learning_rate": one.encoder_learning_rate} for one in fits]


def describe(
    prepared: Prepared, best: Standing, calibrations: Mapping[str, HeadCalibration], metrics: Mapping[str, Any], published: str
) -> ModelFacts:
    """State what the manifest says about the winner; `published` names the training whose weights it has."""
    settings = prepared.settings
    chosen = trial_settings(settings, best.best.best_point)
    trained = {"seed": best.best.seed, "frozen_layers": _frozen_layers(prepared, best.best, chosen)}
    trial = replace(chosen, fit=chosen.fit.model_copy(update=trained))
    heads = tuple(
        HeadFacts(
            name=head,
            classes=prepared.dataset.classes[head],
            ordered=one.ordered,
            hidden_size=one.hidden_size,
            dropout=one.dropout,
            loss=one.loss,
            word_pieces=head in prepared.assignment.worded,
            temperature=calibrations[head].temperature,
            threshold=calibrations[head].threshold,
            validation_answers=calibrations[head].shares,
        )
        for head, one in trial.heads.items()
    )
    return ModelFacts(
        heads=heads,
        text_template=settings.data.text,
        max_tokens=prepared.source.max_tokens,
        encoder=_encoder(prepared),
        settings={
            "fit": trial.fit.model_dump(),
            "heads": {head: one.model_dump() for head, one in trial.heads.items()},
            "trainings": _trainings(prepared, best.best),
        },
        metrics=dict(metrics),
        data_digest=prepared.dataset.digest,
        search={"name": prepared.name, "trial": published},
    )
