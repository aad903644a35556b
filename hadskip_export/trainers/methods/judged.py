"""HadSkip's gates over FastBERT's exits: a text goes on while a gate finds the layers to come worth their price.

FastBERT (Liu et al. 2020, arXiv:2004.02178) leaves the fine-tuned model as it is and lets a text go where an exit's
entropy is low. Here a gate sees what the exit classifies, and has learned what the later exits would make of it. So it
needs no classes, as entropy does.
"""

from dataclasses import dataclass
from typing import ClassVar

from hadskip_export.modeling.exits import ExitClassifier, ExitKind, Student
from hadskip_export.routing.criteria import WORTH
from hadskip_export.trainers.judging import fit_judges
from hadskip_export.trainers.methods.fastbert import FastBert
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import FITTED, GATES
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class Judged(FastBert):
    """See `EarlyExit`."""

    kind: ClassVar[ExitKind] = "judged"
    criterion: ClassVar[str] = WORTH

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return super().settings(recipe) | GATES | FITTED

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        """First the exits, then the gates."""
        student = super().learn(model, teacher, leg, session)
        assert isinstance(student, ExitClassifier)
        fit_judges(student, teacher, session, f"{leg.name}: gates")
        return student
