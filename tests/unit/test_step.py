"""One optimiser step: the same however it is split, and nothing of a head without labels moves."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from training.data.tokens import Tokenizer
from training.fit_settings import FitSettings
from training.fitting.step import Fold, Objective, Step
from training.fitting.workers import OneWorker
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import freeze, recompute_layers

METHODS = ("fixed", "uncertainty", "dynamic_average", "pcgrad")
HEADS = [
    {"name": "job", "classes": ["nurse", "driver"], "hidden_size": 4, "dropout": 0.0},
    {"name": "letter", "classes": ["a", "b", "c"], "hidden_size": 0, "dropout": 0.0, "loss": "corn"},
]
# Weight decay and a norm that nothing reaches: what moves without a gradient, and differences that clipping would hide.
SETTINGS = FitSettings(encoder_learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.1, max_gradient_norm=1e6, warmup_fraction=0.0)
ALL = np.arange(24)


@pytest.fixture
def start(make_encoder: Callable[..., Path]) -> Callable[..., tuple[TwoHeadBert, Step]]:
    folder = make_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = Tokenizer(folder, 32)
    texts = [f"the {'nurse' if row % 2 else 'driver'} {'abc'[row % 3]} {'x ' * (row % 7)}" for row in range(24)]
    # The second half knows one head only; the texts of the first third lack the other now and then.
    labels = {
        "job": np.array([-1 if row < 8 and row % 3 == 0 else row % 2 for row in range(24)]),
        "letter": np.array([row % 3 if row < 12 else -1 for row in range(24)]),
    }

    def begin(method: str = "fixed", depth: int = 0, **changes: Any) -> tuple[TwoHeadBert, Step]:
        torch.manual_seed(1)
        model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), "mean", HEADS)).train()
        freeze(model, depth)
        fold = Fold(TokenInputs(tokenizer.encode(texts), tokenizer.pad_id), labels)
        weights = {"job": np.array([0.5, 1.5], np.float32)}
        objective = Objective(loss_weights={"job": 1.0, "letter": 3.0}, class_weights=weights)
        step = Step(model, fold, SETTINGS.model_copy(update={"balancing": method, **changes}), objective, OneWorker())
        step.balancer.begin_epoch(1)
        return model, step

    return begin


def parameters(model: TwoHeadBert, step: Step) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in {**dict(model.named_parameters()), **step.balancer.parameters}.items()}


def moments(step: Step) -> Mapping[str, torch.Tensor]:
    return step.state()[0]


def first_moments(step: Step) -> dict[str, torch.Tensor]:
    """A tenth of the gradients of the only step so far: unlike the parameters they don't depend on a gradient's sign alone."""
    return {name: tensor for name, tensor in moments(step).items() if name.startswith("exp_avg/")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", [{"micro_batches": 2}, {"micro_batches": 5}, {"micro_batches": 100}])
def test_parts_of_a_batch_make_the_same_gradients(
    start: Callable[..., tuple[TwoHeadBert, Step]], method: str, split: dict[str, int]
) -> None:
    _, whole = start(method)
    _, parts = start(method, **split)
    assert float(parts.take([ALL])) == pytest.approx(float(whole.take([ALL])), abs=1e-5)
    found, expected = first_moments(parts), first_moments(whole)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_a_step_make_the_gradients_of_one_batch(start: Callable[..., tuple[TwoHeadBert, Step]], method: str) -> None:
    # The second of these batches has no label of one head: means over batches would differ from the mean over the step.
    _, whole = start(method)
    _, batches = start(method)
    assert float(batches.take([ALL[:10], ALL[12:], ALL[10:12]])) == pytest.approx(float(whole.take([ALL])), abs=1e-5)
    for name, tensor in first_moments(whole).items():
        torch.testing.assert_close(first_moments(batches)[name], tensor, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", [0, 3])
def test_a_head_without_labels_does_not_move(start: Callable[..., tuple[TwoHeadBert, Step]], method: str, depth: int) -> None:
    model, step = start(method, depth)
    for _ in range(2):
        step.take([ALL])
        step.balancer.finish_epoch()
    before, momentum = parameters(model, step), moments(step)
    assert math.isfinite(float(step.take([ALL[12:18], ALL[18:]])))
    after = parameters(model, step)
    own = {name for name in after if name.startswith("heads.1.") or name == "letter"}
    assert len(own) == 2 + (method == "uncertainty")
    assert all(torch.equal(after[name], before[name]) for name in own)
    assert all(
        torch.equal(moments(step)[name], tensor)
        for name, tensor in momentum.items()
        if name.startswith(("exp_avg/heads.1.", "exp_avg/learned/letter"))
    )
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert all(not torch.equal(after[name], before[name]) for name in after if name.startswith("heads.0.") or name == "job")
    # And it moves again as soon as it has labels.
    step.take([ALL])
    assert not any(torch.equal(parameters(model, step)[name], before[name]) for name in own)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_any_label_moves_nothing(start: Callable[..., tuple[TwoHeadBert, Step]], method: str) -> None:
    model, step = start(method)
    step.take([ALL])
    before = parameters(model, step)
    nothing: NDArray[np.int64] = np.full(24, -1)
    step._training = Fold(step._training.inputs, {"job": nothing, "letter": nothing})
    assert float(step.take([ALL])) == 0.0
    assert all(torch.equal(parameters(model, step)[name], tensor) for name, tensor in before.items())


def test_learned_variances_have_the_heads_rate_and_no_weight_decay(start: Callable[..., tuple[TwoHeadBert, Step]]) -> None:
    _, step = start("uncertainty", head_learning_rate=0.3, weight_decay=0.5)
    group = step._optimiser.param_groups[-1]
    assert group["params"] == list(step.balancer.parameters.values())
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_gradient(start: Callable[..., tuple[TwoHeadBert, Step]], method: str) -> None:
    _, plain = start(method)
    model, saving = start(method)
    recompute_layers(model)
    plain.take([ALL])
    saving.take([ALL])
    for name, tensor in first_moments(plain).items():
        torch.testing.assert_close(first_moments(saving)[name], tensor, atol=1e-7, rtol=1e-5)


def test_methods_differ(start: Callable[..., tuple[TwoHeadBert, Step]]) -> None:
    steps = [start(method)[1] for method in METHODS]
    for step in steps:
        for _ in range(3):
            step.take([ALL])
            step.balancer.finish_epoch()
    found = [moments(step)["exp_avg/encoder.encoder.layer.2.output.dense.weight"] for step in steps]
    assert all(not torch.allclose(one, other, atol=1e-6) for position, one in enumerate(found) for other in found[position + 1 :])
