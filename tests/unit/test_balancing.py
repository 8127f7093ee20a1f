"""Every balancing equals TorchJD's on the same numbers, CORN equals coral-pytorch's, and missing labels move nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from coral_pytorch.losses import corn_loss
from torch import nn
from torchjd.aggregation import PCGrad as TheirPCGrad
from torchjd.scalarization import DWA, UW

from training.fitting.balancing.balancer import Balancer
from training.fitting.balancing.dynamic_average import DynamicAverage
from training.fitting.balancing.fixed import Fixed
from training.fitting.balancing.pcgrad import PCGrad, projection_weights
from training.fitting.balancing.uncertainty import Uncertainty
from training.fitting.loss import head_loss
from training.network.ordinal import class_log_probabilities

CPU = torch.device("cpu")
HEADS = ("a", "b", "c")
COUNTS = dict.fromkeys(HEADS, 8)


class Shared(nn.Module):
    """A trunk and three branches: small enough to see every gradient."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(4, 5, dtype=torch.float64)
        self.branches = nn.ModuleDict({head: nn.Linear(5, 1, dtype=torch.float64) for head in HEADS})
        self.texts = torch.randn(8, 4, dtype=torch.float64)
        self.truth = {head: torch.randn(8, 1, dtype=torch.float64) for head in HEADS}

    def losses(self, heads: tuple[str, ...] = HEADS) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.trunk(self.texts))
        return {head: (self.branches[head](hidden) - self.truth[head]).square().mean() for head in heads}

    def gradients(self) -> dict[str, torch.Tensor | None]:
        return {name: parameter.grad for name, parameter in self.named_parameters()}


def make_pcgrad(model: Shared, seed: int = 7) -> PCGrad:
    return PCGrad(list(model.trunk.parameters()), {head: list(branch.parameters()) for head, branch in model.branches.items()}, seed)


MAKERS: dict[str, Callable[[Shared], Balancer]] = {
    "fixed": lambda _: Fixed({"a": 0.5, "b": 1.0, "c": 1.5}),
    "uncertainty": lambda _: Uncertainty(HEADS, CPU),
    "dynamic_average": lambda _: DynamicAverage(HEADS, CPU),
    "pcgrad": make_pcgrad,
}


def step(balancer: Balancer, losses: Mapping[str, torch.Tensor]) -> float:
    balancer.begin_step(tuple(losses))
    balancer.backward(losses)
    return float(balancer.finish_step({head: loss.detach() for head, loss in losses.items()}, {head: COUNTS[head] for head in losses}))


def test_uncertainty_equals_torchjd() -> None:
    model = Shared()
    ours, theirs = Uncertainty(HEADS, CPU), UW(3).double()
    start = torch.tensor([0.3, -0.7, 1.1])
    with torch.no_grad():
        theirs.log_var.copy_(start)
        for head, value in zip(HEADS, start, strict=True):
            ours.parameters[head].copy_(value)
    total = step(ours, model.losses())
    own = {name: gradient.clone() for name, gradient in model.gradients().items() if gradient is not None}
    model.zero_grad()
    expected = theirs(torch.stack(list(model.losses().values())))
    expected.backward()
    assert total == pytest.approx(expected.item(), abs=1e-6)
    for head, gradient in zip(HEADS, theirs.log_var.grad, strict=True):
        assert ours.parameters[head].grad.item() == pytest.approx(gradient.item(), abs=1e-6)
    for name, gradient in model.gradients().items():
        torch.testing.assert_close(own[name], gradient, atol=1e-6, rtol=0)


def test_dynamic_average_equals_torchjd_over_epochs() -> None:
    generator = torch.Generator().manual_seed(3)
    ours, theirs = DynamicAverage(HEADS, CPU), DWA(temperature=2.0)
    for _ in range(5):
        for _ in range(4):
            values = torch.rand(3, generator=generator) + 0.1
            losses = {head: value.clone().requires_grad_() for head, value in zip(HEADS, values, strict=True)}
            reference = values.clone().requires_grad_()
            total, expected = step(ours, losses), theirs(reference)
            expected.backward()
            assert total == pytest.approx(expected.item(), abs=1e-6)
            assert [loss.grad.item() for loss in losses.values()] == pytest.approx(reference.grad.tolist(), abs=1e-6)
        ours.finish_epoch()
        theirs.step()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("heads", [2, 3, 5])
def test_projected_gradients_equal_torchjd(heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(heads, 6, dtype=torch.float64)
    torch.manual_seed(100 + seed)
    expected = TheirPCGrad()(matrix)
    torch.manual_seed(100 + seed)
    orders = [torch.randperm(heads).tolist() for _ in range(heads)]
    torch.testing.assert_close(projection_weights(matrix @ matrix.T, orders) @ matrix, expected, atol=1e-6, rtol=0)


def test_pcgrad_balances_only_what_is_shared() -> None:
    model = Shared()
    names = [name for name, _ in model.trunk.named_parameters()]
    rows = []
    for loss in model.losses().values():
        found = torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    plain = torch.stack(rows).sum(dim=0)
    sum(model.losses().values()).backward()
    branches = {name: gradient.clone() for name, gradient in model.gradients().items() if name.startswith("branches")}
    model.zero_grad()
    balancer = make_pcgrad(model)
    balancer.begin_epoch(1)
    step(balancer, model.losses())
    # The same orders as the balancer drew.
    orders = torch.Generator().manual_seed(7 * 100_003 + 1)
    weights = projection_weights(torch.stack(rows) @ torch.stack(rows).T, [torch.randperm(3, generator=orders).tolist() for _ in range(3)])
    trunk = torch.cat([model.trunk.get_parameter(name).grad.flatten() for name in names])
    torch.testing.assert_close(trunk, weights @ torch.stack(rows), atol=1e-6, rtol=0)
    assert not torch.allclose(trunk, plain, atol=1e-3)
    for name, gradient in branches.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=0)


def plain_pcgrad(rows: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Algorithm 1 of the paper, word for word, on whole gradient vectors."""
    orders = [torch.randperm(len(rows), generator=generator).tolist() for _ in rows]
    projected = []
    for position, order in enumerate(orders):
        own = rows[position].clone()
        for other in order:
            if other != position and own @ rows[other] < 0:
                own -= (own @ rows[other]) / (rows[other] @ rows[other]) * rows[other]
        projected.append(own)
    return torch.stack(projected).sum(dim=0)


@pytest.mark.parametrize("seed", range(8))
def test_pcgrad_equals_the_plain_algorithm_also_where_a_head_leaves_parameters_out(seed: int) -> None:
    torch.manual_seed(seed)
    # The last is read by nobody, the first not by head c, and the gradient of `tied` is one and the same tensor for both of its parts.
    shared = [nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in (3, 5, 5, 2)]
    own = {head: nn.Parameter(torch.randn((), dtype=torch.float64)) for head in HEADS}
    ways = {head: torch.randn(3, 5, dtype=torch.float64) for head in HEADS}

    def losses() -> dict[str, torch.Tensor]:
        tied = shared[1] + shared[2]
        read = {head: tied if head == "c" else tied + shared[0] @ ways[head] for head in HEADS}
        return {head: (read[head] @ ways[head][0]).tanh() * own[head] + read[head].square().mean() * ways[head].sum() for head in HEADS}

    rows, own_gradients = [], []
    for head, loss in losses().items():
        found = torch.autograd.grad(loss, [*shared, own[head]], allow_unused=True)
        own_gradients.append(found[-1])
        rows.append(torch.cat([torch.zeros_like(one) if each is None else each for one, each in zip(shared, found[:-1], strict=True)]))
    balancer = PCGrad(shared, {head: [own[head]] for head in HEADS}, seed)
    balancer.begin_epoch(3)
    step(balancer, losses())
    expected = plain_pcgrad(rows, torch.Generator().manual_seed(seed * 100_003 + 3))
    assert shared[3].grad is None
    torch.testing.assert_close(torch.cat([one.grad for one in shared[:3]]), expected[:13], atol=1e-12, rtol=1e-12)
    assert all(torch.equal(own[head].grad, gradient) for head, gradient in zip(HEADS, own_gradients, strict=True))


def most_bytes(act: Callable[[], object]) -> int:
    """Return how many bytes of tensors there were at once at most, beyond those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pytest.mark.parametrize("heads", [2, 4])
def test_pcgrad_keeps_one_copy_of_the_gradients_a_head(heads: int) -> None:
    torch.manual_seed(1)
    trunk = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    branches = {str(head): nn.Linear(256, 1) for head in range(heads)}
    balancer = PCGrad(list(trunk.parameters()), {head: list(branch.parameters()) for head, branch in branches.items()}, seed=1)

    def take() -> None:
        balancer.begin_step(tuple(branches))
        for _ in range(2):
            hidden = trunk(torch.randn(2, 256))
            losses = {head: branch(hidden).square().mean() for head, branch in branches.items()}
            balancer.backward(losses)
        balancer.finish_step({head: loss.detach() for head, loss in losses.items()}, dict.fromkeys(branches, 2))

    copies = most_bytes(take) / sum(parameter.nbytes for parameter in trunk.parameters())
    assert all(parameter.grad is not None for parameter in trunk.parameters())
    # Beside them a layer's own gradient, while it is added.
    assert heads <= copies < heads + 0.5


def test_pcgrad_of_several_workers_sums_what_any_of_them_has() -> None:
    whole, first, second = Shared(), Shared(), Shared()
    unread = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3)]
    made = []
    for model, parameter in zip((whole, first, second), unread, strict=True):
        own = {head: list(branch.parameters()) for head, branch in model.branches.items()}
        made.append(PCGrad([*model.trunk.parameters(), parameter], own, seed=5))
        made[-1].begin_epoch(1)
        made[-1].begin_step(HEADS)
    losses = whole.losses()
    made[0].backward(losses)
    # Each worker has a part of what all have together, and the second one nothing of the last head.
    shares = {head: (0.25, 0.75) if head != HEADS[-1] else (1.0, 0.0) for head in HEADS}
    made[1].backward({head: loss * shares[head][0] for head, loss in first.losses().items()})
    made[2].backward({head: loss * shares[head][1] for head, loss in second.losses(HEADS[:-1]).items()})
    for mine, theirs in zip(made[1].pending(), made[2].pending(), strict=True):
        total = mine + theirs
        mine.copy_(total)
        theirs.copy_(total)
    zeros = dict.fromkeys(HEADS, torch.zeros((), dtype=torch.float64))
    for balancer in made:
        balancer.finish_step(zeros, COUNTS)
    for name, parameter in whole.trunk.named_parameters():
        for model in (first, second):
            torch.testing.assert_close(model.trunk.get_parameter(name).grad, parameter.grad, atol=1e-14, rtol=1e-12)
    assert all(parameter.grad is None for parameter in unread)


def test_pcgrad_without_anything_shared_is_the_plain_sum() -> None:
    model = Shared()
    model.trunk.requires_grad_(False)
    sum(model.losses().values()).backward()
    expected = {name: gradient.clone() for name, gradient in model.gradients().items() if gradient is not None}
    model.zero_grad()
    balancer = PCGrad([], {head: list(branch.parameters()) for head, branch in model.branches.items()}, seed=1)
    step(balancer, model.losses())
    assert {name for name, gradient in model.gradients().items() if gradient is not None} == set(expected)
    assert all(torch.allclose(model.get_parameter(name).grad, gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("method", MAKERS)
def test_parts_of_a_step_add_up_to_the_whole(method: str) -> None:
    whole, parts = Shared(), Shared()
    one, other = MAKERS[method](whole), MAKERS[method](parts)
    for balancer in (one, other):
        balancer.begin_epoch(1)
    step(one, whole.losses())
    other.begin_step(HEADS)
    sums = dict.fromkeys(HEADS, torch.zeros((), dtype=torch.float64))
    for share in (0.25, 0.0, 0.75):
        losses = {head: share * loss for head, loss in parts.losses().items()}
        other.backward(losses)
        sums = {head: sums[head] + loss.detach() for head, loss in losses.items()}
    other.finish_step(sums, COUNTS)
    for name, gradient in whole.gradients().items():
        torch.testing.assert_close(parts.get_parameter(name).grad, gradient, atol=1e-9, rtol=1e-6)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(other.parameters[name].grad, parameter.grad)


@pytest.mark.parametrize("method", MAKERS)
def test_a_head_without_labels_gets_no_gradient_and_no_nan(method: str) -> None:
    model = Shared()
    balancer = MAKERS[method](model)
    for epoch in (1, 2, 3, 4):
        balancer.begin_epoch(epoch)
        assert math.isfinite(step(balancer, model.losses(("a", "c"))))
        balancer.finish_epoch()
    gradients = model.gradients()
    assert all(gradient is None for name, gradient in gradients.items() if name.startswith("branches.b"))
    assert all(gradient is not None and gradient.isfinite().all() for name, gradient in gradients.items() if ".b." not in name)
    assert all((parameter.grad is None) == (name == "b") for name, parameter in balancer.parameters.items())


def test_dynamic_average_keeps_the_ratio_of_a_head_without_labels_at_one() -> None:
    balancer = DynamicAverage(HEADS, CPU)
    for losses in ({"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 1.0, "c": 2.0}):
        step(balancer, {head: torch.tensor(value, requires_grad=True) for head, value in losses.items()})
        balancer.finish_epoch()
    found = balancer.factors({head: torch.zeros(()) for head in HEADS})
    expected = 3 * torch.softmax(torch.tensor([0.5, 1.0, 2.0]) / 2.0, dim=0)
    torch.testing.assert_close(found, expected)


def test_dynamic_average_weighs_batches_by_their_labels() -> None:
    balancer = DynamicAverage(("a",), CPU)
    for loss, count in ((1.0, 1), (4.0, 3)):
        balancer.finish_step({"a": torch.tensor(loss)}, {"a": count})
    balancer.finish_epoch()
    assert balancer.state()["history"].tolist() == [[13 / 4]]


@pytest.mark.parametrize("method", MAKERS)
def test_a_state_taken_over_gives_the_same_factors(method: str) -> None:
    model = Shared()
    first, second = MAKERS[method](model), MAKERS[method](model)
    for value in (1.0, 0.4, 0.3):
        step(first, {head: torch.tensor(value * (1 + position), requires_grad=True) for position, head in enumerate(HEADS)}) if (
            method != "pcgrad"
        ) else None
        first.finish_epoch()
    second.load(first.state())
    losses: dict[str, Any] = {head: torch.ones(()) for head in HEADS}
    assert torch.equal(first.factors(losses), second.factors(losses))


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_corn_equals_coral_pytorch(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    steps = torch.randn(64, classes - 1, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, (64,), generator=generator)
    expected = corn_loss(steps, labels, classes)
    ours = head_loss(class_log_probabilities(steps), labels, loss="corn")
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    (found,), (wanted,) = torch.autograd.grad(ours, steps), torch.autograd.grad(expected, steps)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_corn_passes_over_missing_labels() -> None:
    steps = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, -1, 3, 2, -1, 1, 1, 3, -1, 0])
    known = labels >= 0
    ours = head_loss(class_log_probabilities(steps), labels, loss="corn")
    assert ours.item() == pytest.approx(corn_loss(steps[known], labels[known], 4).item(), abs=1e-6)


def test_corn_probabilities_sum_to_one_and_never_rise_with_the_class() -> None:
    steps = 5 * torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    probabilities = class_log_probabilities(steps).exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(200), atol=1e-5, rtol=0)
    above = 1.0 - probabilities.cumsum(dim=1)
    assert (above[:, 1:] <= above[:, :-1] + 1e-6).all()
