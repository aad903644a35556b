"""What the stages of one training share: its data and its settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.problems import Problem
from hadskip_export.support.errors import RecipeError, first_line
from hadskip_export.support.progress import say
from hadskip_export.support.words import counted
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.checkpoints import Checkpoints
from hadskip_export.trainers.display import Display
from hadskip_export.trainers.objective import Objective
from hadskip_export.trainers.processes import Processes
from hadskip_export.trainers.recipe import Recipe

Log = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What all stages share: the data that gradients see, the recipe, where to compute, where to log."""

    data: Dataset
    held_out: Dataset
    recipe: Recipe
    seed: int
    device: str
    log: Log
    problem: Problem
    objective: Objective
    metric: str
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    display: Display = field(default_factory=Display)
    processes: Processes = field(default_factory=Processes)

    def score(self, logits: np.ndarray, data: Dataset) -> float:
        """The metric of logits, float [n, labels], on data that have targets."""
        assert data.targets is not None
        return METRICS[self.metric](self.problem, logits, data.targets, data.groups)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What figures are measured on.

    Args:
        teacher_logits: the teacher's answers for `data`, float32 [n, classes].
        mismatched: MNLI's second evaluation data.
    """

    data: Dataset
    teacher_logits: np.ndarray
    mismatched: Dataset | None = None


def check_device(device: str) -> None:
    """
    Raises:
        RecipeError: torch cannot compute on `device` here.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"--device {device}: torch cannot compute there ({first_line(error)}); leave --device out to train on the"
            " CPU, or install a torch for this device"
        ) from error


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """With as many threads of torch: a sum's last bits depend on how many share it."""
    before = torch.get_num_threads()
    if count != before:
        say(f"with {counted(count, 'thread')}, as the run began: its weights depend on that to their last bits")
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
