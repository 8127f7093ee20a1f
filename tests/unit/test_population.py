"""Candidates for a head train together as each would alone, and as torch's own optimiser would train it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.labels import MISSING
from training.fit_settings import FitSettings
from training.fitting.loss import class_weights, head_loss
from training.fitting.optimiser import schedule
from training.fitting.population import Candidate, Features, Question, known, train_population
from training.judging.calibration import measured
from training.judging.metrics import head_score
from training.network.model import Head

SETTINGS = FitSettings(epochs=6, patience=6, batch_texts=16, warmup_fraction=0.2, weight_decay=0.05, max_gradient_norm=0.5)
WIDTH, CLASSES = 12, 4


def features(texts: int, seed: int) -> Features:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, texts)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    pooled = torch.from_numpy((centres[labels] + chance.normal(size=(texts, WIDTH))).astype(np.float32))
    return Features(pooled, torch.from_numpy(labels), torch.arange(texts) % 3)


FEATURES = features(80, 1)
CANDIDATES = [
    Candidate(hidden_size, dropout, loss, rate, weighting)  # type: ignore[arg-type]
    for hidden_size in (0, 8)
    for loss in ("softmax", "corn")
    for dropout, rate, weighting in ((0.0, 1e-2, "none"), (0.3, 3e-3, "balanced"), (0.1, 3e-2, "inverse_sqrt"))
]
QUESTION = Question("job", CLASSES, is_ordered=True)


def test_together_each_ends_as_alone() -> None:
    together = train_population(CANDIDATES, QUESTION, FEATURES, SETTINGS)
    assert [one.candidate for one in together] == CANDIDATES
    for one in together:
        (alone,) = train_population([one.candidate], QUESTION, FEATURES, SETTINGS)
        assert (one.score, one.epoch, one.epochs) == (pytest.approx(alone.score), alone.epoch, alone.epochs)
        for name, value in one.state.items():
            torch.testing.assert_close(value, alone.state[name], atol=1e-5, rtol=1e-4)


def test_whoever_lost_patience_changes_nothing_for_the_others() -> None:
    short = SETTINGS.model_copy(update={"epochs": 20, "patience": 2})
    together = train_population(CANDIDATES, QUESTION, FEATURES, short)
    assert len({one.epochs for one in together}) > 1
    for one in together:
        (alone,) = train_population([one.candidate], QUESTION, FEATURES, short)
        assert (one.epoch, one.epochs) == (alone.epoch, alone.epochs)
        torch.testing.assert_close(one.state["output.weight"], alone.state["output.weight"], atol=1e-5, rtol=1e-4)


def test_a_halving_ends_the_worse_half_of_a_shape_and_changes_nothing_for_the_better() -> None:
    rates = (1e-5, 1e-3, 1e-2, 3e-2, 1e-1)
    candidates = [Candidate(hidden_size, 0.0, "softmax", rate) for hidden_size in (0, 8) for rate in rates]
    whole = train_population(candidates, QUESTION, FEATURES, SETTINGS)
    halved = train_population(candidates, QUESTION, FEATURES, SETTINGS, (1, 3))
    for first in (0, len(rates)):
        # Five, then three, then two.
        assert sorted(one.epochs for one in halved[first : first + len(rates)]) == [1, 1, 3, 6, 6]
    for one, other in zip(whole, halved, strict=True):
        assert one.epochs == 6
        if other.epochs == 6:
            assert (other.score, other.epoch) == (pytest.approx(one.score), one.epoch)
            torch.testing.assert_close(other.state["output.weight"], one.state["output.weight"], atol=1e-5, rtol=1e-4)
        else:
            assert other.epoch <= other.epochs
            assert other.score <= max(rival.score for rival in halved if rival.candidate.hidden_size == other.candidate.hidden_size)


def trained_by_torch(candidate: Candidate, learns: torch.Tensor, settings: FitSettings) -> Head:
    """The oracle: torch.optim.AdamW and clip_grad_norm_ on a head of ours, over the texts it may learn from."""
    torch.manual_seed(settings.seed)
    head = Head(WIDTH, CLASSES, candidate.hidden_size, 0.0, candidate.loss)
    groups = [
        {"params": [one for one in head.parameters() if (one.dim() > 1) == is_matrix], "weight_decay": settings.weight_decay * is_matrix}
        for is_matrix in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, lr=candidate.learning_rate)
    # As a trial has them: of all training texts, also while a fold is held out.
    weights = torch.from_numpy(class_weights(candidate.class_weighting, FEATURES.labels.numpy(), CLASSES, candidate.loss))
    for number in range(1, settings.epochs + 1):
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        batches = torch.randperm(80, generator=generator).split(settings.batch_texts)
        for position, indices in enumerate(batches):
            for layer in range(1 + bool(candidate.hidden_size)):
                # What dropout would have drawn.
                torch.rand((len(indices), candidate.hidden_size if layer else WIDTH), generator=generator)
            own = indices[learns[indices]]
            for group in optimiser.param_groups:
                progress = (number - 1 + position / len(batches)) / settings.epochs
                group["lr"] = candidate.learning_rate * schedule(progress, settings.warmup_fraction)
            optimiser.zero_grad()
            head_loss(head(FEATURES.pooled[own]), FEATURES.labels[own], weights, candidate.loss).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), settings.max_gradient_norm)
            optimiser.step()
    return head


WITHOUT_DROPOUT = [one for one in CANDIDATES if not one.dropout]
WEIGHTED = [replace(WITHOUT_DROPOUT[0], class_weighting="balanced"), replace(WITHOUT_DROPOUT[-1], class_weighting="inverse_sqrt")]


@pytest.mark.parametrize("candidate", [*WITHOUT_DROPOUT, *WEIGHTED])
def test_without_dropout_it_is_torchs_adamw_on_all_texts_judged_by_those_held_out(candidate: Candidate) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 3})
    question = Question("job", CLASSES, is_ordered=True, metric="log_loss")
    (found,) = train_population([candidate], question, FEATURES, settings)
    assert found.epoch == 3
    for name, value in trained_by_torch(candidate, torch.ones(80, dtype=torch.bool), settings).state_dict().items():
        torch.testing.assert_close(found.state[name], value, atol=1e-5, rtol=1e-4)
    held_out = torch.zeros(80, CLASSES)
    for fold in range(3):
        texts = FEATURES.folds == fold
        held_out[texts] = trained_by_torch(candidate, ~texts, settings)(FEATURES.pooled[texts]).detach()
    # At the temperature that a model of it would have: which scores are the loudest says nothing.
    judged = measured(FEATURES.labels.numpy(), held_out.numpy(), 0, "log_loss", is_ordered=True)
    assert found.score == pytest.approx(head_score(judged.to_dict(), "log_loss"), rel=1e-4)
    assert found.score != pytest.approx(float(torch.exp(-head_loss(held_out, FEATURES.labels))), rel=1e-3)


def test_what_cannot_be_learned_scores_no_better_than_chance() -> None:
    """Labels drawn by chance: judged on what it has learned a head with a hidden layer would shine."""
    labels = torch.from_numpy(np.random.default_rng(5).integers(0, CLASSES, 80))
    chance = Features(FEATURES.pooled, labels, FEATURES.folds)
    long = SETTINGS.model_copy(update={"epochs": 30, "patience": 30})
    (found,) = train_population([Candidate(8, 0.0, "softmax", 3e-2)], Question("job", CLASSES), chance, long)
    head = Head(WIDTH, CLASSES, 8, 0.0)
    head.load_state_dict(found.state)
    assert found.score < 0.45
    assert float((head(FEATURES.pooled).argmax(dim=1) == labels).float().mean()) > found.score


def test_it_learns_and_a_candidate_that_diverges_only_loses() -> None:
    wild = Candidate(8, 0.0, "softmax", 1e30)
    good, bad = train_population([CANDIDATES[0], wild], QUESTION, FEATURES, SETTINGS)
    assert good.score > 0.7
    assert bad.score < 0.5


def test_texts_without_a_label_are_left_out() -> None:
    labels = FEATURES.labels.numpy().copy()
    labels[::2] = MISSING
    found = known(FEATURES.pooled, labels, FEATURES.folds.numpy())
    assert torch.equal(found.folds, FEATURES.folds[1::2])
    assert torch.equal(found.pooled, FEATURES.pooled[1::2])
    assert torch.equal(found.labels, FEATURES.labels[1::2])
