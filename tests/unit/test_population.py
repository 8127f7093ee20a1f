"""Candidates for a head train together as each would alone, and as torch's own optimiser would train it."""

import numpy as np
import pytest
import torch

from training.data.dataset import MISSING
from training.fit_settings import FitSettings
from training.fitting.loss import head_loss
from training.fitting.optimiser import schedule
from training.fitting.population import Candidate, Features, Question, known, train_population
from training.network.model import Head

SETTINGS = FitSettings(epochs=6, patience=6, batch_texts=16, warmup_fraction=0.2, weight_decay=0.05, max_gradient_norm=0.5)
WIDTH, CLASSES = 12, 4


def features(texts: int, seed: int) -> Features:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, texts)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    return Features(torch.from_numpy((centres[labels] + chance.normal(size=(texts, WIDTH))).astype(np.float32)), torch.from_numpy(labels))


TRAINING, VALIDATION = features(80, 1), features(40, 2)
CANDIDATES = [
    Candidate(hidden_size, dropout, loss, rate)  # type: ignore[arg-type]
    for hidden_size in (0, 8)
    for loss in ("softmax", "corn")
    for dropout, rate in ((0.0, 1e-2), (0.3, 3e-3), (0.1, 3e-2))
]
QUESTION = Question("job", CLASSES, is_ordered=True)


def test_together_each_ends_as_alone() -> None:
    together = train_population(CANDIDATES, QUESTION, TRAINING, VALIDATION, SETTINGS)
    assert [one.candidate for one in together] == CANDIDATES
    for one in together:
        (alone,) = train_population([one.candidate], QUESTION, TRAINING, VALIDATION, SETTINGS)
        assert (one.score, one.epoch, one.epochs) == (pytest.approx(alone.score), alone.epoch, alone.epochs)
        for name, value in one.state.items():
            torch.testing.assert_close(value, alone.state[name], atol=1e-5, rtol=1e-4)


def test_whoever_lost_patience_changes_nothing_for_the_others() -> None:
    short = SETTINGS.model_copy(update={"epochs": 20, "patience": 2})
    together = train_population(CANDIDATES, QUESTION, TRAINING, VALIDATION, short)
    assert len({one.epochs for one in together}) > 1
    for one in together:
        (alone,) = train_population([one.candidate], QUESTION, TRAINING, VALIDATION, short)
        assert (one.epoch, one.epochs) == (alone.epoch, alone.epochs)
        torch.testing.assert_close(one.state["output.weight"], alone.state["output.weight"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("candidate", [one for one in CANDIDATES if not one.dropout])
def test_without_dropout_it_is_torchs_adamw(candidate: Candidate) -> None:
    """The oracle: torch.optim.AdamW and clip_grad_norm_ on a head of ours."""
    weights = np.array([1.0, 2.0, 0.5, 1.5], dtype=np.float32)
    settings = SETTINGS.model_copy(update={"epochs": 3})
    torch.manual_seed(settings.seed)
    head = Head(WIDTH, CLASSES, candidate.hidden_size, 0.0, candidate.loss)
    groups = [
        {"params": [one for one in head.parameters() if (one.dim() > 1) == is_matrix], "weight_decay": settings.weight_decay * is_matrix}
        for is_matrix in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, lr=candidate.learning_rate)
    for number in (1, 2, 3):
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        batches = torch.randperm(80, generator=generator).split(settings.batch_texts)
        for position, indices in enumerate(batches):
            for _ in range(1 + bool(candidate.hidden_size)):
                # What dropout would have drawn.
                torch.rand((len(indices), WIDTH if _ == 0 else candidate.hidden_size), generator=generator)
            for group in optimiser.param_groups:
                group["lr"] = candidate.learning_rate * schedule((number - 1 + position / len(batches)) / 3, settings.warmup_fraction)
            optimiser.zero_grad()
            loss = head_loss(head(TRAINING.pooled[indices]), TRAINING.labels[indices], torch.from_numpy(weights), candidate.loss)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), settings.max_gradient_norm)
            optimiser.step()
    question = Question("job", CLASSES, is_ordered=True, metric="log_loss", class_weights=weights)
    (found,) = train_population([candidate], question, TRAINING, VALIDATION, settings)
    assert found.epoch == 3
    for name, value in head.state_dict().items():
        torch.testing.assert_close(found.state[name], value, atol=1e-5, rtol=1e-4)


def test_it_learns_and_a_candidate_that_diverges_only_loses() -> None:
    wild = Candidate(8, 0.0, "softmax", 1e30)
    good, bad = train_population([CANDIDATES[0], wild], QUESTION, TRAINING, VALIDATION, SETTINGS)
    assert good.score > 0.8
    assert bad.score < 0.5


def test_the_metric_of_the_head_judges() -> None:
    by_loss = Question("job", CLASSES, is_ordered=True, metric="log_loss")
    (found,) = train_population([CANDIDATES[0]], by_loss, TRAINING, VALIDATION, SETTINGS)
    head = Head(WIDTH, CLASSES, 0, 0.0)
    head.load_state_dict(found.state)
    loss = head_loss(head(VALIDATION.pooled), VALIDATION.labels).detach()
    assert found.score == pytest.approx(float(torch.exp(-loss)))


def test_texts_without_a_label_are_left_out() -> None:
    labels = TRAINING.labels.numpy().copy()
    labels[::2] = MISSING
    found = known(TRAINING.pooled, labels)
    assert torch.equal(found.pooled, TRAINING.pooled[1::2])
    assert torch.equal(found.labels, TRAINING.labels[1::2])
