"""All decisions at once, before the first layer (BlockDrop's idea, Wu et al. 2018, arXiv:1711.08393, with this
package's body and fit of gates in place of its policy gradient): gates read the embeddings, and no layer's output."""

from dataclasses import dataclass
from typing import ClassVar

from hadskip_export.modeling.exits import Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.trainers.methods.nested import Nested
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class Upfront(Nested):
    """Otherwise as `Nested`: what that gains over this is what later layers tell its gates."""

    initialises_gates: ClassVar[bool] = False

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        assert isinstance(model, GatedClassifier)
        model.upfront = True
        return super().learn(model, teacher, leg, session)
