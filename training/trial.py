"""The seam to Ray Tune: one trial, from a configuration to reports and checkpoints.

Everything that costs once a process, not once a trial, is kept between the trials of a reused actor: the verified encoder and the
activations of its frozen layers. Nothing that trains is kept. The work itself is in `fit`.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.device import choose_device
from training.encoder import EncoderSource, encoder_layers, find_encoder, load_encoder_weights
from training.errors import EncoderError
from training.fit import DivergedError, Epoch, Fit, Fold, Objective
from training.inputs import Inputs, TokenInputs
from training.loss import inverse_sqrt_weights
from training.model import TwoHeadBert, make_config
from training.prefix import activation_bytes, compute_prefix, freeze, remove_prefix
from training.search_space import TrialSettings, trial_settings
from training.searcher import HAS_DIVERGED, IS_LAST, SCORE
from training.settings import EncoderSettings, TrainingSettings
from training.tokens import TokenTable

Labels = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Assignment:
    """What all trials of a search share; Ray's object store lends its arrays to every process without copies.

    Attributes:
        settings: The section `training`.
        encoder_sha256: The encoder every process must find.
        classes: Head → ordered classes.
        pad_id: Token that fills batches.
        training: Tokens of the training texts.
        validation: Tokens of the validation texts.
        training_labels: Head → (texts,).
        validation_labels: Head → (texts,).
        digest: SHA-256 of the data.
    """

    settings: TrainingSettings
    encoder_sha256: str
    classes: dict[str, tuple[str, ...]]
    pad_id: int
    training: TokenTable
    validation: TokenTable
    training_labels: Labels
    validation_labels: Labels
    digest: str


def train(config: dict[str, Any], assignment: Assignment) -> None:
    """Train one trial inside Ray Tune, reporting after every epoch.

    Args:
        config: Searched values by path.
        assignment: What all trials share.
    """
    from ray import tune

    resources = assignment.settings.tuning.resources_per_trial
    torch.set_num_threads(max(1, int(resources.cpu)))
    fit = prepare_fit(assignment, trial_settings(assignment.settings, flat(config)))
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            fit.restore(Path(folder))
    last: Epoch | None = None
    try:
        for last in fit.epochs():
            with tempfile.TemporaryDirectory() as folder:
                fit.save(Path(folder))
                tune.report(report_of(last), checkpoint=tune.Checkpoint.from_directory(folder))
    except DivergedError:
        # Reported, not raised: training it again would diverge again, and the search learns that it failed.
        tune.report((report_of(last) if last else {SCORE: 0.0, "epoch": 0}) | {HAS_DIVERGED: True, IS_LAST: True})


def report_of(epoch: Epoch) -> dict[str, Any]:
    """Turn an epoch into what Ray Tune is told: the score is the best so far."""
    facts = asdict(epoch)
    return facts | {SCORE: facts["best_score"], "epoch": facts["number"], "epoch_score": facts["score"], HAS_DIVERGED: False}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested keys with `/`; Ray hands `a/b` over as `{"a": {"b": …}}`."""
    paths: dict[str, Any] = {}
    for key, value in config.items():
        paths |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return paths


def prepare_fit(assignment: Assignment, trial: TrialSettings) -> Fit:
    """Build a trial's model and what it reads."""
    model = build_model(assignment, trial)
    device = choose_device()
    nn.Module.to(model, device)
    depth = trial.fit.frozen_layers
    freeze(model, depth)
    if depth and _activation_bytes(assignment, model, depth) <= trial.fit.activation_bytes:
        training, validation = _activations(assignment, model, depth)
        remove_prefix(model, depth)
    else:
        training, validation = (TokenInputs(table, assignment.pad_id) for table in (assignment.training, assignment.validation))
    weighted = [head for head, head_settings in trial.heads.items() if head_settings.class_weighting == "inverse_sqrt"]
    objective = Objective(
        loss_weights={head: head_settings.loss_weight for head, head_settings in trial.heads.items()},
        class_weights={head: inverse_sqrt_weights(assignment.training_labels[head], len(assignment.classes[head])) for head in weighted},
        score_weights=assignment.settings.tuning.score_weights,
    )
    folds = Fold(training, assignment.training_labels), Fold(validation, assignment.validation_labels)
    return Fit(model, *folds, trial.fit, objective, device)


def build_model(assignment: Assignment, trial: TrialSettings) -> TwoHeadBert:
    """Make a trial's model: pretrained encoder, random heads by the trial's seed."""
    from transformers import AutoConfig

    source = _verified_encoder(assignment.settings.encoder, assignment.encoder_sha256)
    heads = [
        {"name": name, "classes": list(assignment.classes[name]), "hidden_size": head.hidden_size, "dropout": head.dropout}
        for name, head in trial.heads.items()
    ]
    torch.manual_seed(trial.fit.seed)
    model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(source.folder), local_files_only=True), source.pooling, heads))
    load_encoder_weights(model.encoder, source)
    return model


_encoders: dict[tuple[EncoderSettings, str], EncoderSource] = {}


def _verified_encoder(settings: EncoderSettings, sha256: str) -> EncoderSource:
    key = settings, sha256
    if key not in _encoders:
        source = find_encoder(settings)
        if source.sha256 != sha256:
            raise EncoderError(
                f"encoder {settings.name!r} has SHA-256 {source.sha256} on this node, but {sha256} on the one that started the search"
            )
        _encoders[key] = source
    return _encoders[key]


# Only the latest: a search usually has one depth, and activations are large.
_prefixes: dict[tuple[str, str, int], tuple[Inputs, Inputs]] = {}


def _activation_bytes(assignment: Assignment, model: TwoHeadBert, depth: int) -> int:
    width, is_pooled = int(model.config.encoder.hidden_size), depth == len(encoder_layers(model.encoder))
    return sum(activation_bytes(table, width, pooled=is_pooled) for table in (assignment.training, assignment.validation))


def _activations(assignment: Assignment, model: TwoHeadBert, depth: int) -> tuple[Inputs, Inputs]:
    key = assignment.digest, assignment.encoder_sha256, depth
    if key not in _prefixes:
        _prefixes.clear()
        training_inputs, validation_inputs = (
            compute_prefix(model, table, assignment.pad_id, depth) for table in (assignment.training, assignment.validation)
        )
        _prefixes[key] = training_inputs, validation_inputs
    return _prefixes[key]
