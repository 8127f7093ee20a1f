"""Training: it learns, stops, keeps its best epoch, goes on after a stop, and is reproducible."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from training.data.tokens import Tokenizer
from training.fit_settings import FitSettings
from training.fitting.device import choose_precision
from training.fitting.fit import DivergedError, Epoch, Fit, Fold, Objective, best_state_in
from training.fitting.optimiser import parameter_groups, schedule
from training.fitting.predict import predict_logits
from training.judging.calibration import measured
from training.network.encoder import encoder_layers
from training.network.inputs import TokenInputs
from training.network.model import TwoHeadBert, make_config
from training.network.prefix import compute_prefix, freeze, load_trainable_state, remove_prefix, rest_frozen, trainable_state

HEADS = [
    {"name": "job", "classes": ["nurse", "driver"], "hidden_size": 0, "dropout": 0.0},
    {"name": "letter", "classes": ["a", "b", "c"], "hidden_size": 8, "dropout": 0.1},
]
SETTINGS = FitSettings(epochs=6, patience=6, encoder_learning_rate=1e-2, head_learning_rate=3e-2, batch_tokens=64, batch_texts=8)
OBJECTIVE = Objective(loss_weights={"job": 1.0, "letter": 1.0})


@pytest.fixture
def start(make_encoder: Callable[..., Path]) -> Callable[..., Fit]:
    folder = make_encoder("bert")
    tokenizer = Tokenizer(folder, 32)
    texts = [f"the {job} {letter} {filler}" for job in ("nurse", "driver") for letter in "abc" for filler in "qrstuvwx"]
    labels = {
        "job": np.array([index // 24 for index in range(48)]),
        "letter": np.array([-1 if index % 5 == 0 else index // 8 % 3 for index in range(48)]),
    }

    def begin(settings: FitSettings = SETTINGS, depth: int = 0, *, once: bool = False) -> Fit:
        torch.manual_seed(settings.seed)
        model = TwoHeadBert(make_config(AutoConfig.from_pretrained(str(folder)), "mean", HEADS))
        freeze(model, depth)
        inputs = TokenInputs(tokenizer.encode(texts), tokenizer.pad_id)
        validation = np.arange(0, 48, 3)
        held_out = TokenInputs(inputs.table.take(validation), tokenizer.pad_id)
        reads: list[Any] = [inputs, held_out]
        if once:
            reads = [compute_prefix(model, one.table, one.pad_id, depth) for one in reads]
            remove_prefix(model, depth)
        known = Fold(reads[1], {head: values[validation] for head, values in labels.items()})
        return Fit(model, Fold(reads[0], labels), known, settings, OBJECTIVE, torch.device("cpu"))

    return begin


def test_it_learns_both_heads_from_partly_missing_labels(start: Callable[..., Fit]) -> None:
    epochs = list(start(SETTINGS.model_copy(update={"epochs": 15, "patience": 15})).epochs())
    assert epochs[-1].best_score > 0.95
    assert epochs[-1].loss < epochs[0].loss / 2
    assert all(metrics["macro_f1"] > 0.9 for metrics in epochs[-1].best_metrics.values())


def test_the_same_seed_gives_the_same_epochs_and_another_seed_others(start: Callable[..., Fit]) -> None:
    short = SETTINGS.model_copy(update={"epochs": 2})
    first, second = list(start(short).epochs()), list(start(short).epochs())
    assert first == second
    assert first[0].loss != next(iter(start(short.model_copy(update={"seed": 8})).epochs())).loss


@pytest.mark.parametrize("balancing", ["fixed", "uncertainty", "dynamic_average", "pcgrad"])
def test_stopped_and_restored_it_goes_on_as_if_never_stopped(start: Callable[..., Fit], tmp_path: Path, balancing: str) -> None:
    settings = SETTINGS.model_copy(update={"balancing": balancing})
    whole = start(settings)
    expected = list(whole.epochs())
    broken = start(settings)
    for epoch in broken.epochs():
        if epoch.number == 3:
            break
    broken.save(tmp_path)
    again = start(settings)
    again.restore(tmp_path)
    assert list(again.epochs()) == expected[3:]
    assert all(torch.equal(again.best_state[name], tensor) for name, tensor in whole.best_state.items())


@pytest.mark.parametrize("balancing", ["fixed", "uncertainty", "dynamic_average", "pcgrad"])
def test_restored_after_its_last_epoch_it_tells_of_it_again_and_does_nothing(
    start: Callable[..., Fit], tmp_path: Path, balancing: str
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "balancing": balancing})
    fit = start(settings)
    ended = list(fit.epochs())
    assert [epoch.is_last for epoch in ended] == [True]
    fit.save(tmp_path)
    again = start(settings)
    again.restore(tmp_path)
    # Whoever should have heard of it may have died before.
    assert list(again.epochs()) == ended
    assert all(torch.equal(again.best_state[name], tensor) for name, tensor in fit.best_state.items())


def test_the_best_epoch_is_kept_not_the_last(start: Callable[..., Fit], tmp_path: Path) -> None:
    fit = start(SETTINGS.model_copy(update={"epochs": 8, "patience": 8, "head_learning_rate": 0.3}))
    states = {epoch.number: ({name: tensor.clone() for name, tensor in fit.model.named_parameters()}, epoch) for epoch in fit.epochs()}
    last: Epoch = states[max(states)][1]
    fit.save(tmp_path)
    kept = best_state_in(tmp_path)
    assert last.best_score == max(epoch.score for _, epoch in states.values())
    assert all(torch.equal(kept[name], states[last.best_number][0][name]) for name in kept)


def test_patience_ends_it_early(start: Callable[..., Fit]) -> None:
    # A learning rate this small never improves on the first epoch.
    settings = SETTINGS.model_copy(update={"epochs": 50, "patience": 2, "encoder_learning_rate": 1e-12, "head_learning_rate": 1e-12})
    assert [epoch.number for epoch in start(settings).epochs()] == [1, 2, 3]


def test_a_log_loss_is_judged_at_a_fitted_temperature(start: Callable[..., Fit]) -> None:
    fit = start(SETTINGS.model_copy(update={"epochs": 1}))
    fit._objective = replace(fit._objective, score_metrics={"job": "log_loss"})
    (epoch,) = fit.epochs()
    labels = fit._validation.labels["job"]
    expected = measured(labels, fit.best_logits["job"], 0, "log_loss").log_loss
    assert epoch.metrics["job"]["log_loss"] == expected
    assert expected != measured(labels, fit.best_logits["job"], 0, "macro_f1").log_loss


def test_a_loss_that_is_no_number_is_an_error(start: Callable[..., Fit]) -> None:
    fit = start()
    with torch.no_grad():
        fit.model.heads[0].output.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="epoch 1: the training loss is nan"):
        next(iter(fit.epochs()))


def test_frozen_layers_do_not_move(start: Callable[..., Fit]) -> None:
    fit = start(SETTINGS.model_copy(update={"epochs": 1}), depth=2)
    before = {name: parameter.clone() for name, parameter in fit.model.named_parameters()}
    list(fit.epochs())
    moved = {name for name, parameter in fit.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(name.startswith(("heads.", "encoder.encoder.layer.2.")) for name in moved)


def test_accumulated_batches_step_like_one(start: Callable[..., Fit]) -> None:
    few = start(SETTINGS.model_copy(update={"epochs": 1, "gradient_accumulation": 1000}))
    list(few.epochs())
    steps = {float(moments["step"]) for moments in few._step._optimiser.state.values()}
    assert steps == {1.0}


@pytest.mark.parametrize("balancing", ["uncertainty", "dynamic_average", "pcgrad"])
def test_every_balancing_learns_both_heads(start: Callable[..., Fit], balancing: str) -> None:
    last = list(start(SETTINGS.model_copy(update={"epochs": 15, "patience": 15, "balancing": balancing, "micro_batches": 2})).epochs())[-1]
    assert all(metrics["macro_f1"] > 0.9 for metrics in last.best_metrics.values())


def test_learning_rates_fall_with_depth_and_spare_biases_from_decay(start: Callable[..., Fit]) -> None:
    fit = start()
    groups = parameter_groups(fit.model, FitSettings(encoder_learning_rate=1.0, head_learning_rate=7.0, layer_decay=0.5, weight_decay=0.1))
    names = {parameter: name for name, parameter in fit.model.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    decays = {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert rates["heads.0.output.weight"] == 7.0
    assert rates["encoder.encoder.layer.2.output.dense.weight"] == 1.0
    assert rates["encoder.encoder.layer.0.output.dense.weight"] == 0.25
    assert rates["encoder.embeddings.word_embeddings.weight"] == 0.125
    assert decays["encoder.encoder.layer.2.output.dense.bias"] == 0.0
    assert decays["encoder.encoder.layer.2.output.dense.weight"] == 0.1


def test_the_schedule_rises_and_falls() -> None:
    assert schedule(0.0, 0.1) == pytest.approx(0.01)
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == pytest.approx(0.0)
    assert schedule(0.0, 0.0) == pytest.approx(1.0)


def test_predictions_come_in_the_order_of_the_inputs(start: Callable[..., Fit]) -> None:
    fit = start()
    inputs = fit._training.inputs
    together = predict_logits(fit.model, inputs, batch_tokens=20)
    for index in (0, 17, 47):
        alone = fit.model(**inputs.batch(np.array([index]))).logits
        for head, logits in alone.items():
            np.testing.assert_allclose(logits.detach().numpy()[0], together[head][index], atol=1e-5)


def test_bf16_and_gradient_checkpointing_train_too(start: Callable[..., Fit]) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2, "precision": "bf16", "gradient_checkpointing": True})
    assert all(math.isfinite(epoch.loss) for epoch in start(settings).epochs())


@pytest.mark.parametrize(("depth", "once"), [(2, False), (2, True), (3, True)])
def test_gradient_checkpointing_learns_the_same_above_frozen_layers(start: Callable[..., Fit], depth: int, once: bool) -> None:
    plain, saving = (SETTINGS.model_copy(update={"epochs": 2, "gradient_checkpointing": is_on}) for is_on in (False, True))
    expected = [(epoch.loss, epoch.score) for epoch in start(plain, depth, once=once).epochs()]
    found = [(epoch.loss, epoch.score) for epoch in start(saving, depth, once=once).epochs()]
    assert found == [pytest.approx(pair, abs=1e-5) for pair in expected]


def test_frozen_layers_learn_the_same_from_their_activations_and_anew(start: Callable[..., Fit]) -> None:
    # Nothing that trains has dropout in this model but the second head, and both ways draw the same numbers for it.
    anew = start(SETTINGS.model_copy(update={"epochs": 2}), depth=3)
    expected = [(epoch.loss, epoch.score) for epoch in anew.epochs()]
    once = start(SETTINGS.model_copy(update={"epochs": 2}), depth=3, once=True)
    assert [(epoch.loss, epoch.score) for epoch in once.epochs()] == [pytest.approx(pair, abs=1e-5) for pair in expected]


def test_only_what_trains_has_dropout(start: Callable[..., Fit]) -> None:
    fit = start(depth=2)
    fit.model.train()
    rest_frozen(fit.model)
    layers = encoder_layers(fit.model.encoder)
    assert [layer.training for layer in layers] == [False, False, True]
    assert not any(module.training for module in fit.model.encoder.embeddings.modules())
    assert all(module.training for module in fit.model.heads.modules())


def test_a_beginning_that_training_does_not_better_is_the_result(start: Callable[..., Fit]) -> None:
    """A model that can answer already, then trained so hard that it forgets."""
    good = start(SETTINGS.model_copy(update={"epochs": 15, "patience": 15}))
    *_, last = good.epochs()
    wild = SETTINGS.model_copy(update={"epochs": 6, "patience": 2, "encoder_learning_rate": 1.0, "head_learning_rate": 1.0})
    fit = start(wild)
    load_trainable_state(fit.model, good.best_state)
    fit.is_begun = True
    epochs = list(fit.epochs())
    # Patience waits for what is trained, not for what it began with.
    trained = [one.score for one in epochs[1:]]
    best = trained.index(max(trained)) + 1
    assert (len(trained), epochs[-1].trained_number, epochs[-1].trained_score) == (min(best + 2, 6), best, max(trained))
    assert (epochs[0].loss, epochs[0].score, epochs[0].is_last) == (None, last.best_score, False)
    assert all(one.best_number == 0 and one.best_score == last.best_score and one.score < one.best_score for one in epochs[1:])
    assert epochs[-1].best_metrics == epochs[0].metrics == last.best_metrics


def test_whoever_comes_back_from_a_fall_is_waited_for(start: Callable[..., Fit]) -> None:
    """Its beginning is better than its first epochs, which get better all the time."""
    good = start(SETTINGS.model_copy(update={"epochs": 15, "patience": 15}))
    *_, last = good.epochs()
    fit = start(SETTINGS.model_copy(update={"epochs": 6, "patience": 1}))
    slow = list(fit.epochs())
    rising = next(place for place, one in enumerate(slow) if place + 1 == len(slow) or slow[place + 1].score <= one.score) + 1
    assert rising >= 3
    again = start(SETTINGS.model_copy(update={"epochs": rising, "patience": 1}))
    again.is_begun = True
    whole = {name: value.clone() for name, value in again.model.state_dict().items()}
    load_trainable_state(again.model, good.best_state)
    epochs = again.epochs()
    assert next(epochs).score == last.best_score > max(one.score for one in slow[:rising])
    again.model.load_state_dict(whole)
    assert [one.number for one in epochs] == list(range(1, rising + 1))


def test_a_training_of_more_layers_goes_on_where_fewer_were_best(start: Callable[..., Fit], tmp_path: Path) -> None:
    top = SETTINGS.model_copy(update={"epochs": 3, "patience": 3})
    below = start(top, 2)
    *_, last = below.epochs()
    whole = SETTINGS.model_copy(update={"epochs": 4, "patience": 2, "encoder_learning_rate": 1.0, "head_learning_rate": 1.0})
    above = start(whole)
    above.begin_after(below.best_state, last)
    assert all(torch.equal(above.best_state[name], value) for name, value in below.best_state.items())
    assert len(above.best_state) > len(below.best_state)
    epochs = above.epochs()
    first = next(epochs)
    # Patience begins anew, numbers go on, and what was best stays so until it is bettered.
    assert (first.number, first.best_score, first.best_number) == (last.number + 1, last.best_score, last.best_number)
    above.save(tmp_path)
    again = start(whole)
    again.restore(tmp_path)
    rest, repeated = list(epochs), list(again.epochs())
    assert rest[-1].number == min(max(rest[-1].trained_number, first.trained_number) + 2, last.number + 4)
    assert rest == repeated
    assert all(torch.equal(again.best_state[name], value) for name, value in above.best_state.items())


def test_the_average_of_the_last_epochs_is_judged_and_kept_where_it_is_better(start: Callable[..., Fit], tmp_path: Path) -> None:
    # So fast that the weights jump about a valley: their average lies deeper.
    fast = SETTINGS.model_copy(update={"epochs": 8, "patience": 8, "encoder_learning_rate": 3e-2, "head_learning_rate": 3e-1})
    plain, averaged = list(start(fast).epochs()), start(fast.model_copy(update={"average_epochs": True}))
    states, expected, kept = [], None, 0
    for epoch in averaged.epochs():
        states.append(trainable_state(averaged.model))
        if expected is None:
            expected = {name: value.clone() for name, value in states[0].items()}
        else:
            expected = {name: (value + states[-1][name]) / 2 for name, value in expected.items()}
        # What trains on is not the average.
        assert (epoch.score, epoch.loss) == (plain[epoch.number - 1].score, plain[epoch.number - 1].loss)
        assert (epoch.average_score is None) == (epoch.number == 1)
        if epoch.best_number == epoch.number and epoch.best_score > epoch.score:
            kept += 1
            assert epoch.best_score == epoch.average_score
            assert all(torch.allclose(averaged.best_state[name], value, atol=1e-6) for name, value in expected.items())
        if epoch.number == 4:
            averaged.save(tmp_path)
    assert kept > 0
    again = start(fast.model_copy(update={"average_epochs": True}))
    again.restore(tmp_path)
    *_, last = again.epochs()
    assert last == epoch
    assert last.best_score >= plain[-1].best_score


def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a GPU it would only warn.
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: (kind, dtype))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert isinstance(choose_precision("auto", torch.device("cuda")), nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", torch.device("cuda")) == ("cuda", torch.bfloat16)
    assert isinstance(choose_precision("auto", torch.device("cpu")), nullcontext)
