"""SmartBERT (Hu et al., IJCAI 2023, arXiv:2303.09266): gates let an input skip layers, exits let it go.

Body and gates learn first, then the exits alone, and in both the states of neighbouring layers are contrasted. Here the
gates are HadSkip's, the first layer has none, the last exit is the model's own head, and an input whose last layers are
skipped is answered by the exit after the last one that it ran. The gates stay as they are: it is the exits' threshold
that meets a budget, and one above what the gates leave cannot be met.
"""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.modeling.exits import ATTENTION_WIDTH, ExitClassifier, ExitKind, Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.modeling.reinmax import straight_through
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.batches import TrainingBatch, count_batches
from hadskip_export.trainers.evaluation import gated_logits
from hadskip_export.trainers.exits import Among, Passed, exit_loss, train_exits
from hadskip_export.trainers.loop import train_epochs
from hadskip_export.trainers.methods.early_exit import EarlyExit, all_but_the_last
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import GATES
from hadskip_export.trainers.stages import log_held_out
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.trainers.word_dropout import drop_words

# As the authors' code has them for RTE, github.com/HuBoren99/SmartBert
SKIPPING = 0.04  # what it is worth to skip: this over the mean number of layers skipped is a loss
SOFT = 3 / 5  # of the first phase: layers are weighted by their gates, and from then on run or not
CONTRAST = (0.01, 0.05)  # what it weighs in either phase
TEMPERATURE = (0.5, 0.55)
WIDTH = 128  # of what is contrasted, as it is told by a projection that only training has


@dataclass(frozen=True)
class SmartBert(EarlyExit):
    """See `EarlyExit`. The body sees the texts as often as others' do, and then the exits as often again."""

    kind: ClassVar[ExitKind] = "attention"
    criterion: ClassVar[str] = "entropy"
    jumps: ClassVar[bool] = True

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return super().settings(recipe) | GATES | {"gate_lr", "exit_lr"}

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return [replace(leg, epochs=2 * leg.epochs) for leg in super().path(recipe, budget, num_layers)]

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return []

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        student, epochs = self.begin(teacher, session), leg.epochs // 2
        train_body_and_gates(student, teacher, session, epochs, f"{leg.name}, gates")
        student.classifier.requires_grad_(False)
        student.gates.requires_grad_(False)
        train_exits(
            student, teacher, self.weights, session, labels=True, rate=session.recipe.exit_lr, epochs=epochs,
            phase=f"{leg.name}, exits", among=AmongExits(len(student.exits)).to(session.device),
        )  # fmt: skip
        return student

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        return all_but_the_last(num_exits)


def train_body_and_gates(student: ExitClassifier, teacher: Teacher, session: Session, epochs: int, phase: str) -> None:
    recipe, hidden_size = session.recipe, student.classifier.config.hidden_size
    gated = GatedClassifier(student.classifier)
    gated.gates = student.gates
    contrast = Contrast(len(gated.gates), hidden_size, TEMPERATURE[0]).to(session.device)
    soft = SOFT * epochs * count_batches(session.data, recipe.batch_size)

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        output = gated(*batch.inputs, estimator=_weigh if number < soft else _decide, keep_states=True)
        taught = teacher(batch, keep_states=False).logits if recipe.alpha1 else None
        skipped = (-output.margins[:, 1:]).sigmoid().mean(dim=0).sum()
        loss = exit_loss(output.logits, taught, batch, session) + SKIPPING / skipped
        among = contrast(output.hidden_states[:-1], batch.attention_mask).sum()
        figures = {"head": loss, "contrast": among, "layers": len(gated.gates) - skipped}
        loss = (1 - CONTRAST[0]) * loss + CONTRAST[0] * among
        return loss, {name: figure.detach() for name, figure in figures.items()}

    body = [*student.classifier.parameters(), *contrast.parameters()]
    groups = [(iter(body), recipe.body_lr), (student.gates.parameters(), recipe.gate_lr)]
    trained, alter = nn.ModuleList([gated, contrast]), drop_words if recipe.alpha1 else lambda batch: batch
    for epoch in train_epochs(trained, groups, step, session, alter=alter, epochs=epochs, phase=phase):
        log_held_out(gated_logits(gated, session.held_out, session.device), "3", epoch, session)


class AmongExits(Among):
    """The contrast of what exits attend to."""

    def __init__(self, num_exits: int):
        super().__init__()
        self.contrast = Contrast(num_exits, ATTENTION_WIDTH, TEMPERATURE[1])

    def forward(self, model: ExitClassifier, losses: Tensor, passed: Passed) -> Tensor:
        """See `Among`."""
        narrowed = [leave.narrowed(state) for leave, state in zip(model.exits, passed.states, strict=False)]
        contrast = self.contrast(narrowed, passed.batch.attention_mask)
        among = contrast.sum() / max(1, len(contrast))
        return (1 - CONTRAST[1]) * losses + CONTRAST[1] * among / len(narrowed)


class Contrast(nn.Module):
    """Each token's state is to be told by that of the layer before, among all tokens of its text.

    Args:
        layers: how many states there are.
        width: of them.
    """

    def __init__(self, layers: int, width: int, temperature: float):
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
            for _ in range(layers)
        )
        self._temperature = temperature

    def forward(self, states: list[Tensor], attention_mask: Tensor) -> Tensor:
        """float [b, s, H] each -> of every two neighbours the mean over real tokens, in nats, float32 [layers - 1]."""
        told = [F.normalize(own(state).float(), dim=-1) for own, state in zip(self.projections, states, strict=True)]
        real = attention_mask.bool()
        same = torch.arange(real.shape[1], device=real.device).expand_as(real)[real]
        losses = [states[0].new_zeros(0)]
        for before, after in itertools.pairwise(told):
            alike = before @ after.transpose(1, 2) / self._temperature  # [b, s, s]
            alike = alike.masked_fill(~real[:, None], float("-inf"))
            losses.append(F.cross_entropy(alike[real], same)[None])
        return torch.cat(losses)


def _weigh(margin: Tensor, decision: Tensor) -> Tensor:
    """Of a layer's output, the share that its gate gives it."""
    return margin.sigmoid()


def _decide(margin: Tensor, decision: Tensor) -> Tensor:
    """The likelier of the two, not what was drawn."""
    return straight_through(margin, (margin > 0).float())
