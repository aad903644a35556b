"""When an input has had enough layers: what the answers of exits say of it.

A criterion looks at one exit's answers after the other, and at what it remembers of those before. It gives a margin:
the input goes on while that is above a threshold. So an exit is to a budget what a gate is: thresholds, operating
points and near ties are the same for both.

It is a pure function, `(answers of this exit, memory) -> (margins, memory)`: training, the check of a build and the
runtime ask the same one. Answers are logits, float32 [b, classes]; what else an exit has learned to tell, one number,
comes behind them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hadskip_export.routing.routes import FIXED_MARGIN

UNCERTAINTY, WORTH = "uncertainty", "worth"  # the criteria of exits that give more than logits

Look = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def entropy(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """That of the classes, in nats (BranchyNet, arXiv:1709.01686; DeeBERT, arXiv:2004.12993)."""
    return _entropy(answers), memory


def normalised_entropy(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As a share of the most there can be (FastBERT, arXiv:2004.02178)."""
    return _entropy(answers) / np.log(answers.shape[1]), memory


def doubt(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left for all classes but the likeliest (Shallow-Deep, arXiv:1810.07052)."""
    probabilities = _probabilities(answers)
    return np.sort(probabilities, axis=1)[:, :-1].sum(axis=1), memory


def uncertainty(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of being wrong that an exit has learned to tell (BERxiT, EACL 2021, "learning to exit")."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(answers[:, -1].astype(np.float64))), memory


def worth(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a gate beside the exit has learned: whether the layers to come are worth their price (`judged`)."""
    return answers[:, -1], memory


def patience(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`1 / (1 + n)`, where this exit and the n before it give the same class (PABEE, arXiv:2006.04152): 1 after the
    first, which has nobody to agree with.

    Args:
        memory: the class before, less than 0 where there is none, and n; [b, 2].
    """
    classes = answers.argmax(axis=1).astype(np.float64)
    agreeing = np.where(classes == memory[:, 0], memory[:, 1] + 1, 0)
    return 1 / (1 + agreeing), np.stack((classes, agreeing), axis=1)


def patient_entropy(answers: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest normalised entropy of the last exits, this one and as many as are remembered (PCEE-BERT, NAACL 2022:
    patience and confidence). Until there are so many, an input goes on.

    Args:
        memory: the normalised entropies before, the last one first; `FIXED_MARGIN` where there was none.
    """
    seen = np.concatenate((normalised_entropy(answers, memory)[0][:, None], memory), axis=1)
    return seen.max(axis=1), seen[:, : memory.shape[1]]


@dataclass(frozen=True)
class Criterion:
    """
    Args:
        look: see this module's text.
        memory: what it begins with for each input.
        beside_logits: how many numbers it reads that an exit gives behind its logits.
        of_gate: whether a gate gives its margins, in logits and for any kind of problem. Others are shares, or have one
            for a factor, and are of classes.
    """

    look: Look
    memory: tuple[float, ...] = ()
    beside_logits: int = 0
    of_gate: bool = False

    @property
    def waits(self) -> bool:
        """Whether an input goes on until there are several answers: then its margins come in steps."""
        return bool(self.memory)

    def start(self, rows: int) -> np.ndarray:
        """float64 [rows, numbers remembered]"""
        return np.tile(np.array(self.memory, np.float64), (rows, 1))

    def margins(self, answers: Sequence[np.ndarray], runs: np.ndarray | None = None) -> np.ndarray:
        """Of inputs that no exit lets go, float32 [b, L]. Before the first layer there is none, and it always runs.

        Args:
            answers: of each exit, float32 [b, classes].
            runs: the layers that each input runs, bool [b, L]; all if left out. Where one is skipped, what was said
                before holds.
        """
        found, memory = [np.full(len(answers[0]), np.inf)], self.start(len(answers[0]))
        for index, answer in enumerate(answers):
            margins, remembered = self.look(answer, memory)
            ran = np.ones(len(answer), bool) if runs is None else runs[:, index]
            found.append(np.where(ran, margins, found[-1]))
            memory = np.where(ran[:, None], remembered, memory)
        return np.stack(found, axis=1).astype(np.float32)


CRITERIA = {
    "entropy": Criterion(entropy),
    "normalised-entropy": Criterion(normalised_entropy),
    "doubt": Criterion(doubt),
    UNCERTAINTY: Criterion(uncertainty, beside_logits=1),
    WORTH: Criterion(worth, beside_logits=1, of_gate=True),
    "patience": Criterion(patience, (-1.0, 0.0)),
    "patient-entropy": Criterion(patient_entropy, (FIXED_MARGIN,)),
}


def _probabilities(answers: np.ndarray) -> np.ndarray:
    """In float64, which tells apart what in float32 is all one, certain."""
    raised = np.exp(answers.astype(np.float64) - answers.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _entropy(answers: np.ndarray) -> np.ndarray:
    """In nats, float64 [b]."""
    shifted = answers.astype(np.float64) - answers.max(axis=1, keepdims=True)
    raised = np.exp(shifted)
    total = raised.sum(axis=1)
    return np.log(total) - (raised * shifted).sum(axis=1) / total
