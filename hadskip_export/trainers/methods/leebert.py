"""LeeBERT (Zhu, ACL 2021): every exit also learns from all others, by weights that are learned themselves, and inputs
leave as PABEE's do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hadskip_export.modeling.exits import ExitClassifier, ExitKind
from hadskip_export.trainers.batches import TrainingBatch
from hadskip_export.trainers.exits import Among, Passed
from hadskip_export.trainers.methods.early_exit import EarlyExit
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.session import Session

EVERY = 4  # batches from one step of the weights to the next
STEP = 0.01  # of the finite difference, as a length in the space of the parameters (DARTS, arXiv:1806.09055)


@dataclass(frozen=True)
class LeeBert(EarlyExit):
    """See `EarlyExit`."""

    kind: ClassVar[ExitKind] = "linear"
    criterion: ClassVar[str] = "patience"

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return super().settings(recipe) | {"gate_lr"}  # of the weights that it learns

    def among(self, student: ExitClassifier, session: Session) -> Among:
        return LearnedWeights(len(student.classifier.layers), session.objective)


class LearnedWeights(Among):
    """What an exit learns is a mean of its own loss and its divergences from the other exits. Its weights learn what
    makes the losses of other texts smaller after a step of the model ("cross-level optimisation"): of a batch, one half
    is the step's, and the other tells what it was good for.
    """

    def __init__(self, num_exits: int, objective: Objective):
        super().__init__()
        own = torch.eye(num_exits) * torch.log(torch.tensor(float(max(1, num_exits - 1))))  # half of it all
        self.scores = nn.Parameter(own)  # of what each exit learns from each other, on the diagonal of labels
        self._objective = objective
        self.register_buffer("_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, model: ExitClassifier, losses: Tensor, passed: Passed) -> Tensor:
        """See `Among`. The scores' gradient is not that of these losses, which would only make them small."""
        shares, batch = self.scores.softmax(dim=1), passed.batch
        terms = self._terms(losses, passed.answers, passed.answers)
        learned = (shares.detach() * terms).sum(dim=1)
        if self._batches % EVERY == 0 and len(batch.rows) > 1 and batch.targets is not None:
            worth = self.worth(model, batch)
            learned = learned + (shares * worth).sum(dim=1) - (shares * worth).sum(dim=1).detach()
        self._batches += 1
        return learned

    def worth(self, model: ExitClassifier, batch: TrainingBatch) -> Tensor:
        """How the losses of the one half of the batch rise with the weight of each term on which the model takes a step
        of length 1 by the other half, float [L, L]: minus the product of the two gradients, by a finite difference."""
        rows = torch.arange(len(batch.rows))
        mine, others = batch.part(rows[::2]), batch.part(rows[1::2])
        learning = [one for one in model.parameters() if one.requires_grad]
        with _exactly(model, batch):
            losses, _ = self._answered(model, others)
            found = torch.autograd.grad(losses.sum(), learning, allow_unused=True)
            slopes = [(one, slope) for one, slope in zip(learning, found, strict=True) if slope is not None]
            length = STEP / (torch.stack([slope.norm() for _, slope in slopes]).norm() + 1e-12)
            with torch.no_grad():
                _, teaching = self._answered(model, mine)  # they stay where they are
                with _moved(slopes, length):
                    ahead = self._terms(*self._answered(model, mine), teaching)
                with _moved(slopes, -length):
                    behind = self._terms(*self._answered(model, mine), teaching)
        return (behind - ahead) / (2 * length)

    def _answered(self, model: ExitClassifier, batch: TrainingBatch) -> tuple[Tensor, list[Tensor]]:
        answers = model(*batch.inputs)
        assert batch.targets is not None
        return torch.stack([self._objective.task_loss(answer, batch.targets) for answer in answers]), answers

    def _terms(self, losses: Tensor, answers: list[Tensor], teaching: list[Tensor]) -> Tensor:
        """Each exit's divergence from what each other says, which does not learn from it, float [L, L]; on the diagonal
        its own loss."""
        rows = [
            torch.stack([self._objective.prediction_loss(answer, other.detach()) for other in teaching])
            for answer in answers
        ]
        diagonal = torch.eye(len(answers), dtype=torch.bool, device=losses.device)
        return torch.where(diagonal, torch.diag(losses), torch.stack(rows))


@contextmanager
def _moved(slopes: list[tuple[nn.Parameter, Tensor]], way: Tensor) -> Iterator[None]:
    """The parameters, so far along their slopes; then as they were. (`functional_call` does not give back modules that
    others share.)"""
    were = [one.data for one, _ in slopes]
    try:
        for one, slope in slopes:
            one.data = one.data + way * slope
        yield
    finally:
        for (one, _), data in zip(slopes, were, strict=True):
            one.data = data


@contextmanager
def _exactly(model: nn.Module, batch: TrainingBatch) -> Iterator[None]:
    """Without dropout and in fp32: a finite difference would be all rounding."""
    was = model.training
    model.eval()
    try:
        with torch.autocast(batch.attention_mask.device.type, enabled=False):
            yield
    finally:
        model.train(was)
