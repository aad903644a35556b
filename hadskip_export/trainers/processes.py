"""One training by several processes of one machine, as torchrun starts them.

Each computes its rows of every batch; their gradients are added up, so that all hold the same weights at all times. The
rest, evaluation among it, each does by itself. The first one's run folder is kept, the others work in copies of it.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from hadskip_export.support.errors import RecipeError
from hadskip_export.support.files import scratch
from hadskip_export.trainers.batches import TrainingBatch


@dataclass(frozen=True)
class Processes:
    """Those of this training, and which one this is. A training by itself is one of one."""

    rank: int = 0
    count: int = 1

    def part(self, batch: TrainingBatch) -> TrainingBatch:
        """Every `count`th row; where that leaves none, a row that counts for nothing."""
        if self.count == 1:
            return batch
        rows = torch.arange(len(batch.rows))[self.rank :: self.count]
        return batch.part(rows) if len(rows) else replace(batch.part(torch.tensor([0])), share=0.0)

    def total(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum over processes of each."""
        if self.count == 1:
            return figures
        summed = torch.stack([figure.float() for figure in figures.values()])
        distributed.all_reduce(summed)
        return dict(zip(figures, summed.unbind(), strict=True))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """A parameter's gradient becomes the sum of those that processes have for it; none where none has."""
        if self.count == 1:
            return
        parameters = list(parameters)
        device = parameters[0].device
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        trained = [parameter for parameter, one in zip(parameters, there.tolist(), strict=True) if one]
        gradients = [torch.zeros_like(own) if own.grad is None else own.grad for own in trained]
        summed = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(summed)
        for own, gradient in zip(trained, summed.split([own.numel() for own in trained]), strict=True):
            own.grad = gradient.view_as(own)

    @contextlib.contextmanager
    def copy_of(self, folder: Path) -> Iterator[Path]:
        """The first one's run folder as it is now, for another of them to work in."""
        with scratch() as place:
            distributed.barrier()
            copy = place / "run"
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("lock"))
            distributed.barrier()
            yield copy

    def let_copy(self) -> None:
        """Of the first one: the others copy its run folder now."""
        if self.count > 1:
            distributed.barrier()
            distributed.barrier()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """
    Args:
        device: where to compute; of `cuda` each process has the one of its number.

    Raises:
        RecipeError: fewer GPUs than processes, or one GPU for all of them.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield Processes()
        return
    cuda = torch.device(device)
    if cuda.type == "cuda":
        own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if cuda.index is not None or own >= there:
            raise RecipeError(
                f"--device {device}: under torchrun each process has a GPU of its own, and there are {there}; give"
                " --device cuda, and no more processes than GPUs"
            )
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if cuda.type == "cuda" else "gloo")
    yield Processes(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()  # not after an error: it waits for the others, and torchrun ends them
