"""The estimators against exact enumeration of all outcomes, never against themselves.

A check that cannot reject a wrong estimator proves nothing, so the same check must reject three known wrong ones.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hadskip_export.modeling.reinmax import ESTIMATORS, reinmax, sample, straight_through

Estimator = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]  # gates float [..., inputs, layers] -> float [...]

MARGINS = st.floats(-8, 8, width=32)


@dataclass(frozen=True)
class Problem:
    """Independent gates with these margins, float64 [inputs, layers], and a loss of all of them."""

    margins: Tensor
    loss: Loss

    def true_gradient(self) -> Tensor:
        """Of the expected loss, by enumerating every outcome with its probability."""
        margins = self.margins.clone().requires_grad_()
        outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=margins.numel())), dtype=margins.dtype)
        outcomes = outcomes.view(-1, *margins.shape)
        p = margins.sigmoid()
        probabilities = (outcomes * p + (1 - outcomes) * (1 - p)).flatten(1).prod(dim=1)
        assert abs(probabilities.sum().item() - 1) < 1e-12
        (probabilities * self.loss(outcomes)).sum().backward()
        return margins.grad

    def sampled_gradients(self, estimator: Estimator, decide: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """float64 [count, inputs, layers]: each with gates of its own."""
        margins = self.margins.expand(count, *self.margins.shape).clone().requires_grad_()
        self.loss(estimator(margins, decide(margins))).sum().backward()
        return margins.grad

    def accepts(self, estimator: Estimator, decide: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Whether the mean of 100,000 gradients lies within four standard errors of the true one, at every gate."""
        generator = torch.Generator().manual_seed(0)
        gradients = self.sampled_gradients(estimator, decide or (lambda m: sample(m, generator)), 100_000)
        error = (gradients.mean(dim=0) - self.true_gradient()).abs()
        standard_error = gradients.std(dim=0) / len(gradients) ** 0.5
        return bool((error <= 4 * standard_error + 1e-9).all())


def quadratic(gates: Tensor) -> Tensor:
    return ((gates - 0.3) ** 2 * 2 + gates).sum(dim=(-1, -2))


def linear(gates: Tensor) -> Tensor:
    return (3 * gates).sum(dim=(-1, -2))


def with_budget_penalty(gates: Tensor) -> Tensor:
    """A task in which every layer's worth depends on the others, and the squared excess of the mean over the batch."""
    generator = torch.Generator().manual_seed(1)
    inputs, layers = gates.shape[-2:]
    interaction = torch.randn(inputs, layers, layers, generator=generator, dtype=gates.dtype)
    task = torch.einsum("...il,ilm,...im->...", gates, interaction, gates) / inputs
    return task + (gates.sum(dim=-1).mean(dim=-1) - 1.5) ** 2


ONE_GATE = Problem(torch.tensor([[0.8]], dtype=torch.float64), quadratic)
FOUR_LAYERS = Problem(torch.tensor([[1.5, -0.4, 0.7, -2.0]], dtype=torch.float64), with_budget_penalty)
TWO_INPUTS = Problem(torch.tensor([[1.5, -0.4], [0.7, -2.0]], dtype=torch.float64), with_budget_penalty)
PROBLEMS = {"one gate": ONE_GATE, "four layers": FOUR_LAYERS, "two inputs, two layers": TWO_INPUTS}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


@each_problem
def test_the_average_gradient_is_the_true_one(problem):
    assert problem.accepts(reinmax)


@settings(deadline=None)
@given(MARGINS, st.floats(-3, 3), st.floats(-3, 3))
def test_the_expected_gradient_of_one_gate_is_exact_for_every_quadratic(margin, slope, curvature):
    """No sampling: both decisions, each with its probability."""
    problem = Problem(
        torch.tensor([[margin]], dtype=torch.float64), lambda g: (slope * g + curvature * g**2).sum((-1, -2))
    )
    p = problem.margins.sigmoid()
    run, skip = (
        problem.sampled_gradients(reinmax, lambda m, value=value: torch.full_like(m, value), 1)[0] for value in (1, 0)
    )
    torch.testing.assert_close(p * run + (1 - p) * skip, problem.true_gradient(), atol=1e-9, rtol=1e-9)


# The check must reject what is wrong


@each_problem
def test_half_the_straight_through_gradient_is_rejected(problem):
    def half(margin: Tensor, decision: Tensor) -> Tensor:
        return decision + (margin.sigmoid() - margin.sigmoid().detach()) / 2

    assert not problem.accepts(half)


@each_problem
def test_the_argmax_instead_of_a_sample_is_rejected(problem):
    assert not problem.accepts(reinmax, decide=lambda margin: (margin > 0).to(margin.dtype))


def test_the_argmax_can_get_even_the_sign_wrong():
    problem = Problem(torch.tensor([[0.5]], dtype=torch.float64), lambda g: ((g - 0.6) ** 2).sum(dim=(-1, -2)))
    argmax = problem.sampled_gradients(reinmax, lambda margin: (margin > 0).to(margin.dtype), 1)[0]
    assert argmax.sign().item() == -problem.true_gradient().sign().item()


@each_problem
def test_straight_through_is_rejected_where_the_loss_is_not_linear(problem):
    assert not problem.accepts(straight_through)


def test_straight_through_is_accepted_where_the_loss_is_linear():
    """So its rejection above is the loss's doing, not that of a check that rejects everything."""
    assert Problem(ONE_GATE.margins, linear).accepts(straight_through)


# The paper's algorithm and the structure


def algorithm_1(logits: Tensor, decision: Tensor) -> Tensor:
    """Appendix C line by line, with D sampled: logits [..., 2] and one-hot D -> B[0]."""
    pi_0 = logits.softmax(-1)
    pi_1 = (decision + pi_0) / 2
    pi_1 = ((pi_1.log() - logits).detach() + logits).softmax(-1)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return (pi_2 - pi_2.detach() + decision)[..., 0]


@settings(deadline=None)
@given(st.lists(st.tuples(MARGINS, MARGINS, st.booleans()), min_size=1, max_size=8))
def test_the_closed_form_equals_the_papers_algorithm(rows):
    logits = torch.tensor([row[:2] for row in rows], dtype=torch.float64, requires_grad=True)
    decision = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64)
    weights = torch.linspace(-1, 2, len(rows), dtype=torch.float64)

    paper = algorithm_1(logits, torch.stack([decision, 1 - decision], dim=-1))
    (wanted,) = torch.autograd.grad((weights * paper).sum(), logits)
    ours = reinmax(logits[:, 0] - logits[:, 1], decision)
    (got,) = torch.autograd.grad((weights * ours).sum(), logits)

    torch.testing.assert_close(ours, paper, atol=1e-6, rtol=0)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@settings(deadline=None)
@given(st.lists(st.tuples(MARGINS, MARGINS, st.booleans()), min_size=1, max_size=8), st.integers(-5, 5))
def test_the_logits_gradients_sum_to_zero_and_a_constant_changes_nothing(estimator, rows, constant):
    decision = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64)

    def result(shift: int) -> tuple[Tensor, Tensor]:
        logits = (torch.tensor([row[:2] for row in rows], dtype=torch.float64) + shift).requires_grad_()
        gate = estimator(logits[:, 0] - logits[:, 1], decision)
        return gate.detach(), torch.autograd.grad(gate.sum(), logits)[0]

    gate, gradient = result(0)
    shifted_gate, shifted_gradient = result(constant)
    torch.testing.assert_close(gradient.sum(dim=-1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-12, rtol=0)
    assert (gradient[:, 0] > 0).all()
    torch.testing.assert_close(shifted_gate, gate, atol=1e-9, rtol=0)
    torch.testing.assert_close(shifted_gradient, gradient, atol=1e-9, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=1, max_size=16))
def test_the_value_is_exactly_the_decision(estimator, rows):
    """A gate of 1 - 6e-8 would mix a little of the skipped branch into what ran."""
    decision = torch.tensor([float(decided) for _, decided in rows])
    value = estimator(torch.tensor([margin for margin, _ in rows], requires_grad=True), decision)
    assert torch.equal(value.detach(), decision)


def test_decisions_are_drawn_with_the_softmaxs_probability():
    margin = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    draws = sample(margin.expand(100_000, 4), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = torch.stack([margin, torch.zeros(4)]).softmax(dim=0)[0]
    assert ((draws.mean(dim=0) - p).abs() < 4 * (p * (1 - p) / len(draws)).sqrt()).all()


def test_decisions_repeat_with_the_generators_seed():
    one, same, other = (sample(torch.zeros(100), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
