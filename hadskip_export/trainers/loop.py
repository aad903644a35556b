"""The loop over batches that all stages share: optimiser, learning rate, figures, and going on after a stop.

What a step draws at random comes of the run's seed, the phase and the number of the step. So a phase's weights, its
optimiser and how far it came are all that a checkpoint needs, and a run that was killed ends with the same weights as
one that was not: on a CPU bit for bit.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadskip_export.support.errors import RecipeError
from hadskip_export.support.progress import track
from hadskip_export.trainers.batches import TrainingBatch, count_batches, shuffled_batches
from hadskip_export.trainers.processes import Processes
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.session import Session

# (a batch, how many there were before it in this phase) -> its loss, and figures whose means are logged
Step = Callable[[TrainingBatch, int], tuple[Tensor, dict[str, Tensor]]]


def train_epochs(
    module: nn.Module,
    groups: list[tuple[Iterator[nn.Parameter], float]],
    step: Step,
    session: Session,
    *,
    alter: Callable[[TrainingBatch], TrainingBatch] = lambda batch: batch,
    epochs: int,
    phase: str,
    carried: dict[str, Any] | None = None,
    saves_end: bool = True,
) -> Iterator[int]:
    """Trains for `epochs` and yields after each one (number from 1), with the mean of the step's figures logged. Epochs
    that a stopped run had behind it are not yielded again.

    Args:
        groups: parameters and their peak learning rates.
        alter: what is done to each batch before a step sees it.
        phase: what is trained, by a name that no other phase of the run has.
        carried: what the caller keeps from one epoch to the next, and has back after a stop.
        saves_end: whether a checkpoint says that the phase has ended; not where the caller keeps its result at once.

    Raises:
        RecipeError: one of the figures is no number.
    """
    recipe, checkpoints, display, processes = session.recipe, session.checkpoints, session.display, session.processes
    per_epoch = count_batches(session.data, recipe.batch_size)
    last = epochs * per_epoch
    state = _State.new(module, groups, recipe, epochs * math.ceil(per_epoch / recipe.accumulate), carried)
    begun = state.restore(checkpoints.load(phase, session.device))
    display.skip(begun)
    display.new_phase()
    while state.done < last:
        epoch, done = 1 + state.done // per_epoch, state.done % per_epoch
        module.train()
        label = f"{phase}, epoch {epoch} of {epochs}"
        batches = shuffled_batches(session.data, recipe.batch_size, session.seed + epoch, session.device)
        left = itertools.islice(batches, done, None)
        for batch in track(left, per_epoch, label, done, display.__str__):
            seed_step(session.seed, phase, state.done)
            batch = processes.part(alter(batch))
            if processes.rank:
                seed_step(session.seed, phase, state.done, processes.rank)  # another dropout
            loss, figures = _forward(step, batch, state.done, session)
            first = done - done % recipe.accumulate
            together = min(recipe.accumulate, per_epoch - first)
            (loss * (batch.share / together)).backward()
            state.add(processes.total({name: figure * batch.share for name, figure in figures.items()}))
            display.saw(loss.detach())
            done += 1
            if done == first + together:
                state.step(recipe.max_grad_norm, processes)
                if done < per_epoch and checkpoints.due():
                    checkpoints.save(phase, state.all())
        means = state.means(per_epoch)
        if not all(map(math.isfinite, means.values())):
            rates = ", ".join(f"{rate:g}" for _, rate in groups)
            raise RecipeError(
                f"{phase}, epoch {epoch}: the loss is no longer a number; train anew at a learning rate lower than"
                f" {rates} (stage1_lr, body_lr, exit_lr, gate_lr; see --set)"
            )
        session.log(phase=phase, epoch=epoch, **means)
        yield epoch
        if state.done < last and checkpoints.due():
            checkpoints.save(phase, state.all())
    if saves_end and begun < last:
        checkpoints.save(phase, state.learned())
    seed_step(session.seed, phase, last)


def seed_step(seed: int, phase: str, *numbers: int) -> None:
    """Makes what torch draws next depend on these alone."""
    mixed = np.random.SeedSequence([seed, zlib.crc32(phase.encode()), *numbers])
    torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))


def _forward(step: Step, batch: TrainingBatch, number: int, session: Session) -> tuple[Tensor, dict[str, Tensor]]:
    device_type = torch.device(session.device).type
    with torch.autocast(device_type, torch.bfloat16, enabled=session.recipe.precision == "bf16"):
        return step(batch, number)


@dataclass
class _State:
    """What a phase has come to.

    Args:
        done: batches.
        sums: of the figures of this epoch; on the device, for to read one waits for it.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    carried: dict[str, Any]
    done: int
    sums: dict[str, Tensor]

    @classmethod
    def new(
        cls,
        module: nn.Module,
        groups: list[tuple[Iterator[nn.Parameter], float]],
        recipe: Recipe,
        steps: int,
        carried: dict[str, Any] | None,
    ) -> "_State":
        """AdamW, whose learning rates rise to their peaks and fall to 0 in `steps`."""
        optimizer = torch.optim.AdamW(
            [{"params": list(parameters), "lr": rate} for parameters, rate in groups],
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        warmup = max(1, round(recipe.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: min((done + 1) / warmup, (steps - done) / max(1, steps - warmup))
        )
        return cls(module, optimizer, schedule, {} if carried is None else carried, 0, {})

    def add(self, figures: dict[str, Tensor]) -> None:
        """Those of one batch."""
        for name, figure in figures.items():
            self.sums[name] = self.sums[name] + figure if name in self.sums else figure.float()  # MPS has no doubles
        self.done += 1

    def step(self, max_grad_norm: float, processes: Processes) -> None:
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        processes.add_gradients(trained)
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def means(self, batches: int) -> dict[str, float]:
        """Of the epoch that ends here."""
        sums, self.sums = self.sums, {}
        return {name: float(value) / batches for name, value in sums.items()}

    def learned(self) -> dict[str, Any]:
        """What is left of it when it is finished."""
        return {"module": self.module.state_dict(), "carried": self.carried, "done": self.done}

    def all(self) -> dict[str, Any]:
        """What it takes to go on."""
        learning = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "sums": self.sums}
        return self.learned() | learning

    def restore(self, found: dict[str, Any] | None) -> int:
        """From either, or from nothing; returns the batches done then."""
        if found is None:
            return 0
        self.module.load_state_dict(found["module"])
        self.carried |= found["carried"]
        self.done = found["done"]
        if "optimizer" in found:
            self.optimizer.load_state_dict(found["optimizer"])
            self.schedule.load_state_dict(found["schedule"])
            self.sums = found["sums"]
        return self.done
