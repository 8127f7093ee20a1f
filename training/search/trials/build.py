"""From an assignment and a configuration to a model, and to a fit ready to train.

The encoder is verified once a process, not once a trial; nothing that trains is kept between trials. It does not know Ray.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors.torch import load
from torch import nn

from cluster.errors import StorageError
from cluster.storage import Storage
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from training.errors import CheckpointError, EncoderError
from training.fit_settings import EncoderSettings
from training.fitting.device import choose_device
from training.fitting.fit import Fit, Fold, Objective
from training.fitting.loss import class_weights
from training.fitting.predict import predict_logits
from training.fitting.workers import Workers
from training.judging.metrics import Logits
from training.network.encoder import EncoderSource, find_encoder, load_encoder_weights
from training.network.inputs import Inputs, TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import freeze, load_trainable_state, remove_prefix
from training.network.products import compute_faster
from training.search.proposing.search_space import TrialSettings
from training.search.trials.assignment import Assignment, EarlierWeights
from training.search.trials.found_heads import FirstRung, read_rung
from training.search.trials.heads_alone import begin_heads
from training.search.trials.reading import read, read_again, scored, tokens_of


def prepare_fit(
    assignment: Assignment, trial: TrialSettings, *, with_test: bool = False, begins: bool = True, workers: Workers | None = None
) -> Fit:
    """Build a trial's model and what it reads.

    Args:
        assignment: What all trials share.
        trial: Its configuration.
        with_test: The test texts will be answered too, so that their activations are computed while the encoder is whole.
        begins: It goes on from no other training, so that its heads begin with what the first rung found.
        workers: Who trains together; by default this process alone.
    """
    model = build_model(assignment, trial)
    device = choose_device()
    nn.Module.to(model, device)
    is_begun = begins and bool(assignment.heads_from) and begin_heads(model, assignment, _first_rung(assignment), trial)
    depth = trial.fit.frozen_layers
    freeze(model, depth)
    splits = [split for split in ("training", "validation", *(["test"] if with_test else [])) if len(assignment.tokens[split])]
    inputs = read(assignment, model, depth, splits, trial.fit.micro_batches)
    if workers is not None and not _all_read_activations(inputs, workers):
        inputs = {split: tokens_of(assignment, split) for split in splits}
    if not isinstance(inputs["training"], TokenInputs):
        remove_prefix(model, depth)
    inputs = {split: scored(assignment, model, split, one) for split, one in inputs.items()}
    weighing = {head: one for head, one in trial.heads.items() if one.class_weighting != "none"}
    labels, classes = assignment.labels["training"], {head: len(own) for head, own in assignment.classes.items()}
    objective = Objective(
        loss_weights={head: head_settings.loss_weight for head, head_settings in trial.heads.items()},
        class_weights={head: class_weights(one.class_weighting, labels[head], classes[head], one.loss) for head, one in weighing.items()},
        score_weights=assignment.settings.tuning.score_weights,
        score_metrics=assignment.settings.tuning.score_metrics,
        ordered=frozenset(head for head, head_settings in trial.heads.items() if head_settings.ordered),
    )
    training, validation = (Fold(inputs[split], assignment.labels[split]) for split in ("training", "validation"))
    fit = Fit(model, training, validation, trial.fit, objective, device, workers)
    fit.is_begun = is_begun
    return fit


def _all_read_activations(inputs: Mapping[str, Inputs], workers: Workers) -> bool:
    # Their machines need not have as much room, and models that kept other layers would wait for each other's for ever.
    reading = torch.tensor([0.0 if isinstance(inputs["training"], TokenInputs) else 1.0])
    workers.sum([reading])
    return int(reading) == workers.count


def _first_rung(assignment: Assignment) -> FirstRung:
    found = read_rung(Storage(assignment.storage), assignment.heads_from, assignment.settings.heads)
    if found is None:
        raise StorageError(f"{assignment.storage}/{assignment.heads_from}: the first rung is damaged", "--resume makes it again")
    return found


def answer_all(assignment: Assignment, trial: TrialSettings, fit: Fit) -> dict[str, Logits]:
    """Answer the validation and test texts with the best epoch of an ended fit.

    Args:
        assignment: What it was prepared with.
        trial: Its configuration.
        fit: Of `prepare_fit(…, with_test=True)`; its model is left with the best epoch's parameters.

    Returns:
        Split → head → logits, (texts, classes); a split without texts is left out.
    """
    load_trainable_state(fit.model, fit.best_state)
    depth = trial.fit.frozen_layers
    return {
        split: predict_logits(
            fit.model, scored(assignment, fit.model, split, read_again(assignment, fit.model, depth, split)), fit.evaluation_tokens
        )
        for split in ("validation", "test")
        if len(assignment.tokens[split])
    }


def build_model(assignment: Assignment, trial: TrialSettings) -> TwoHeadBert:
    """Make a trial's model: pretrained encoder, random heads by the trial's seed."""
    from transformers import AutoConfig

    source = _verified_encoder(assignment.settings.encoder, assignment.encoder_sha256)
    heads = [
        {
            "name": name,
            "classes": list(assignment.classes[name]),
            "hidden_size": head.hidden_size,
            "dropout": head.dropout,
            "loss": head.loss,
            "word_pieces": name in assignment.worded,
        }
        for name, head in trial.heads.items()
    ]
    letters = assignment.words is not None and assignment.words.reads_letters
    torch.manual_seed(trial.fit.seed)
    model = TwoHeadBert(
        make_config(AutoConfig.from_pretrained(str(source.folder), local_files_only=True), source.pooling, heads, letters=letters)
    )
    compute_faster(model)
    load_encoder_weights(model.encoder, source)
    if model.word_pieces is not None and assignment.words is not None:
        assignment.words.fill(model.word_pieces, assignment.spelling, model.scored)
        model.begin_with_scores()
    if assignment.start:
        load_matching_weights(model, Storage(assignment.storage), assignment.start)
    return model


def load_matching_weights(model: TwoHeadBert, storage: Storage, start: EarlierWeights) -> None:
    """Put an earlier version's weights into a model: its encoder, and every head of the same name, classes and shape.

    Args:
        model: Changed in place.
        storage: Where the version is.
        start: The version, and what its files were when the search began.

    Raises:
        CheckpointError: They were changed since.
        EncoderError: The version's encoder is another one.
    """
    # What was verified is what is loaded: both files are read once.
    weights = load(_unchanged(storage, f"{start.folder}/{WEIGHTS_FILE}", start.weights_sha256))
    earlier = json.loads(_unchanged(storage, f"{start.folder}/{CONFIG_FILE}", start.config_sha256))["heads"]
    # A head that answered by itself says again what word pieces say, and the other way round.
    earlier = [head if bool(head.get("word_pieces")) == (head["name"] in model.scored) else head | {"classes": []} for head in earlier]
    encoder = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    try:
        model.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise EncoderError(f"{start.folder}: its encoder is not the one of this search: {str(error).splitlines()[-1].strip()}") from None
    positions = {head["name"]: (position, head["classes"]) for position, head in enumerate(earlier)}
    for head, module in zip(model.config.heads, model.heads, strict=True):
        position, classes = positions.get(head["name"], (-1, []))
        own = {name: weights.get(f"heads.{position}.{name}") for name in module.state_dict()}
        fits = all(
            found is not None and found.shape == value.shape
            for found, value in zip(own.values(), module.state_dict().values(), strict=True)
        )
        if list(classes) == list(head["classes"]) and fits:
            module.load_state_dict(own)


def _unchanged(storage: Storage, path: str, wanted: str) -> bytes:
    content = storage.read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise CheckpointError(
            f"{storage.uri}/{path}: has SHA-256 {found}, but had {wanted or 'none written down'} when the search began",
            "put the version back as it was published, or begin a new search",
        )
    return content


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
