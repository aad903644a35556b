"""What a problem's logits are trained for, and how far one model's are from another's."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.data.problems import REGRESSION, SINGLE, ProblemType


@dataclass(frozen=True)
class Objective:
    """What a problem's logits, float [b, labels], are trained for. The paper has one label of several alone.

    Args:
        variance: of the numbers of a regression, in which its errors are measured: so budgets and learning rates need
            not know the unit of the numbers.
    """

    problem_type: ProblemType
    variance: float = 1.0

    @classmethod
    def of(cls, problem_type: ProblemType, targets: np.ndarray | None) -> "Objective":
        """
        Args:
            targets: of the training data, or what the teacher makes of them.
        """
        if problem_type != REGRESSION or targets is None:
            return cls(problem_type)
        return cls(problem_type, float(np.var(targets, dtype=np.float64)) or 1.0)

    def task_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Equation 4, float [b]: cross-entropy, binary of several labels (their mean) and of relevance; the squared
        error of a regression.

        Args:
            targets: as `Problem.targets` has them.
        """
        if self.problem_type == SINGLE:
            return F.cross_entropy(logits, targets, reduction="none")
        logits = logits.view_as(targets)
        if self.problem_type == REGRESSION:
            return F.mse_loss(logits, targets, reduction="none") / self.variance
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.reshape(len(losses), -1).mean(dim=1)

    def task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`task_losses`, mean over the batch."""
        return self.task_losses(logits, targets).mean()

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL divergence of each prediction from the teacher's, float [b], in nats: of the classes; of each label or
        relevance, given or not, mean over labels; of normal distributions of the numbers' own variance."""
        if self.problem_type == REGRESSION:
            return ((student - teacher) ** 2).mean(dim=-1) / (2 * self.variance)
        if self.problem_type == SINGLE:
            ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
            return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1)
        ours, theirs = (torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits))) for logits in (student, teacher))
        return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=0).mean(dim=-1)

    def prediction_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Equation 5: `divergence`, mean over the batch."""
        return self.divergence(student, teacher).mean()

    def each_divergence(self, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
        """`divergence`, float [n]; logits, float [n, labels]."""
        return self.divergence(torch.from_numpy(student), torch.from_numpy(teacher)).numpy()

    def mean_divergence(self, teacher: np.ndarray, student: np.ndarray) -> float:
        """`each_divergence`, mean over inputs."""
        return float(self.each_divergence(teacher, student).mean())
