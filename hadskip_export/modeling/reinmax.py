"""Gradients through a gate that is 0 or 1: ReinMax and, for the ablation, the straight-through estimator.

Both take the margin `d = logit_run - logit_skip` of a two-way softmax, so `p = sigmoid(d)` is the probability of
running. The value of the result is exactly the decision; only its gradient is estimated.
"""

import torch
from torch import Tensor


def sample(margin: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws each decision, 0. or 1., from its gate's softmax. Sampling, not the argmax, is what ReinMax needs:
    with the argmax even the sign of its gradient can be wrong on a quadratic loss."""
    probability = margin.detach().sigmoid().nan_to_num()  # training says it has diverged; a draw from NaN only fails
    return torch.bernoulli(probability, generator=generator)


def reinmax(margin: Tensor, decision: Tensor) -> Tensor:
    """ReinMax (paper, algorithm 1) for two classes, in closed form.

    With two classes the six lines of the algorithm reduce to the straight-through gradient `p (1 - p)` divided by
    `2 pi_D`: `(1 - p) / 2` where the layer runs and `p / 2` where it is skipped. In expectation that is the true
    gradient for every loss quadratic in the gate.

    Args:
        margin: float [...], `logit_run - logit_skip`.
        decision: the same shape, 0. or 1., as `sample` draws it.
    """
    p = margin.detach().sigmoid()
    slope = torch.where(decision > 0, 1 - p, p) / 2
    return decision + (margin - margin.detach()) * slope


def straight_through(margin: Tensor, decision: Tensor) -> Tensor:
    """The straight-through estimator (Bengio et al., 2013): the gradient of the softmax, whatever was drawn."""
    p = margin.sigmoid()
    return decision + (p - p.detach())  # in brackets: the value is then exactly the decision


ESTIMATORS = {"reinmax": reinmax, "ste": straight_through}
