"""What a trial reads: activations of frozen layers where they fit into memory, else token ids."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from cluster.storage import Storage
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from training.data.dataset import load_dataset
from training.data.tokens import Tokenizer
from training.errors import CheckpointError
from training.fitting.workers import OneWorker
from training.network import products
from training.network.encoder import find_encoder
from training.network.inputs import ActivationInputs, PooledInputs, ScoredInputs, TokenInputs
from training.network.model import TwoHeadBert
from training.network.prefix import has_prefix
from training.search.prepared import make_assignment
from training.search.proposing.search_space import trial_settings
from training.search.trials import reading
from training.search.trials.assignment import Assignment, EarlierWeights
from training.search.trials.build import answer_all, build_model, load_matching_weights, prepare_fit
from training.search.trials.reading import piece_scores
from training.settings import TrainingSettings


def make(encoder: Path, folder: Path, frozen_layers: int, most_bytes: int) -> Assignment:
    """Put together what trials on a small table of two classes share."""
    lines = ["text,job", *(f"the {'nurse' if row % 2 else 'driver'} {row},{'nurse' if row % 2 else 'driver'}" for row in range(60))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings.model_validate(
        {
            "data": {"files": [str(folder / "table.csv")]},
            "heads": {"job": {}},
            "encoder": {"name": str(encoder), "max_tokens": 16},
            "fit": {"epochs": 1, "frozen_layers": frozen_layers},
            "activations": {"most_bytes": most_bytes, "folder": str(folder / "activations")},
        }
    )
    source = find_encoder(settings.encoder)
    return make_assignment(settings, load_dataset(settings), source, Tokenizer(source.folder, 16))


def written(storage: Storage, name: str, model: TwoHeadBert) -> EarlierWeights:
    """Write a model as a version has it."""
    contents = {WEIGHTS_FILE: save(model.state_dict()), CONFIG_FILE: json.dumps(model.config.to_dict(), default=str).encode()}
    for file, content in contents.items():
        storage.write_bytes(f"{name}/{file}", content)
    return EarlierWeights(name, *(hashlib.sha256(content).hexdigest() for content in contents.values()))


@pytest.mark.parametrize(
    ("frozen_layers", "most_bytes", "expected"),
    [(0, 10**9, TokenInputs), (2, 10**9, ActivationInputs), (2, 1000, TokenInputs), (3, 10**9, PooledInputs), (3, 0, TokenInputs)],
)
def test_what_does_not_fit_is_computed_anew(
    frozen_layers: int, most_bytes: int, expected: type, make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this process has mapped already needs no room.
    monkeypatch.setattr(reading, "_mapped", {})
    assignment = make(make_encoder("bert"), tmp_path, frozen_layers, most_bytes)
    settings = assignment.settings
    fit = prepare_fit(assignment, trial_settings(settings, {}))
    training, validation = fit._training.inputs, fit._validation.inputs
    # Their word pieces tell these texts apart.
    assert isinstance(training, ScoredInputs)
    assert isinstance(validation, ScoredInputs)
    assert type(training.inputs) is type(validation.inputs) is expected
    assert next(iter(fit.epochs())).is_last


@pytest.mark.parametrize(("others", "expected"), [(1, ActivationInputs), (0, TokenInputs)])
def test_all_workers_read_token_ids_where_one_of_them_has_no_room(
    others: int, expected: type, make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfTwo(OneWorker):
        count = 2

        def sum(self, tensors: Sequence[torch.Tensor]) -> None:
            for tensor in tensors:
                tensor += others

    monkeypatch.setattr(reading, "_mapped", {})
    assignment = make(make_encoder("bert"), tmp_path, 2, 10**9)
    fit = prepare_fit(assignment, trial_settings(assignment.settings, {}), workers=OfTwo())
    assert isinstance(fit._training.inputs, ScoredInputs)
    assert type(fit._training.inputs.inputs) is expected
    assert has_prefix(fit.model) is (expected is TokenInputs)


def test_a_trials_model_computes_by_the_faster_library(
    make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = make(make_encoder("bert"), tmp_path, 2, 0)
    for is_faster, kind in ((True, products.OneDnnLinear), (False, nn.Linear)):
        monkeypatch.setattr(products, "is_onednn_faster", lambda chosen=is_faster: chosen)
        model = build_model(assignment, trial_settings(assignment.settings, {}))
        assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {kind}


def test_where_the_test_texts_have_no_room_all_are_answered_from_tokens(
    make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and validation texts are mapped by then, but the model kept its frozen layers."""
    encoder, answers = make_encoder("bert"), []
    tables = make(encoder, tmp_path, 2, 0).tokens
    enough = sum(len(tables[split].ids) for split in ("training", "validation")) * 16 * 2
    for most_bytes in (enough, 0):
        monkeypatch.setattr(reading, "_mapped", {})
        assignment = make(encoder, tmp_path, 2, most_bytes)
        trial = trial_settings(assignment.settings, {})
        fit = prepare_fit(assignment, trial, with_test=True)
        assert len(reading._mapped) == (2 if most_bytes else 0)
        assert list(fit.epochs())[-1].is_last
        answers.append(answer_all(assignment, trial, fit))
    for split in ("validation", "test"):
        assert np.array_equal(answers[0][split]["job"], answers[1][split]["job"])


def test_heads_begin_with_what_word_pieces_say(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    assignment = make(make_encoder("bert"), tmp_path, 3, 10**9)
    trial = trial_settings(assignment.settings, {})
    fit = prepare_fit(assignment, trial, with_test=True)
    said = piece_scores(assignment, ("job",), "validation").numpy()
    assert np.abs(said).max() > 0.5
    assert np.allclose(answer_all(assignment, trial, fit)["validation"]["job"], said, atol=1e-6)


def test_words_are_found_anew_where_validation_texts_are_learned_from(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    assignment = make(make_encoder("bert"), tmp_path, 3, 10**9)
    both = assignment.with_validation()
    assert len(both.worded["job"].held_out) == len(assignment.tokens["training"]) + len(assignment.tokens["validation"])
    # A head that was judged without them is published without them.
    assert replace(assignment, words=None).with_validation().words is None


def test_an_earlier_head_is_taken_only_where_it_answered_beside_word_pieces_as_well(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    assignment = make(make_encoder("bert"), tmp_path, 3, 10**9)
    trial, storage = trial_settings(assignment.settings, {}), Storage(str(tmp_path / "storage"))
    for words in (assignment.words, None):
        model = build_model(replace(assignment, words=words), trial)
        torch.nn.init.ones_(model.get_parameter("heads.0.output.weight"))
        name = f"versions/{'with' if words else 'without'}"
        started = build_model(assignment, trial)
        load_matching_weights(started, storage, written(storage, name, model))
        assert bool(started.get_parameter("heads.0.output.weight").any()) == (words is not None)


@pytest.mark.parametrize("file", [WEIGHTS_FILE, CONFIG_FILE])
def test_weights_that_changed_since_the_search_began_are_not_loaded(make_encoder: Callable[..., Path], tmp_path: Path, file: str) -> None:
    storage = Storage(str(tmp_path / "storage"))
    assignment = replace(make(make_encoder("bert"), tmp_path, 3, 10**9), storage=storage.uri)
    trial = trial_settings(assignment.settings, {})
    start = written(storage, "versions/1", build_model(assignment, trial))
    build_model(replace(assignment, start=start), trial)
    content = bytearray(storage.read_bytes(f"versions/1/{file}"))
    content[-2] ^= 1
    storage.write_bytes(f"versions/1/{file}", bytes(content))
    with pytest.raises(CheckpointError, match=f"versions/1/{file}: has SHA-256 .* when the search began"):
        build_model(replace(assignment, start=start), trial)
    unknown = replace(start, weights_sha256="", config_sha256="")
    with pytest.raises(CheckpointError, match="none written down"):
        build_model(replace(assignment, start=unknown), trial)


def test_activations_of_other_weights_have_another_name(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    assignment = make(make_encoder("bert"), tmp_path, 3, 10**9)
    model = build_model(assignment, trial_settings(assignment.settings, {}))
    starts = [None, EarlierWeights("versions/1", "a" * 64, "c" * 64), EarlierWeights("versions/1", "b" * 64, "c" * 64)]
    names = {reading._wanted(replace(assignment, start=start), model, 3, "training").name for start in starts}
    assert len(names) == 3
