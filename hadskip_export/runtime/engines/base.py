"""What the runtime asks of an engine: load a piece, run it. Nothing else."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from hadskip_export.support.cpus import usable_cpus
from hadskip_export.support.environment import chip
from hadskip_export.support.errors import EngineError
from hadskip_export.support.values import check_flag, whole_number

# How finely the model is cut. `gates`: every layer and every gate is an engine of its own, called in turn. `layers`: a
# layer's engine, or one engine asked after it, answers for all later gates. `whole`: the gated model is one engine.
Cut = Literal["gates", "layers", "whole"]
PRECISIONS = ("fp32", "bf16", "fp16", "int8")  # what each costs in agreement rises from one to the next
UNBOUNDED = sys.maxsize  # padding, on a device that computes many tokens in the time of a few
_REDUCED = ("layer", "full", "whole")


def is_reduced(piece: str) -> bool:
    """Whether an engine below fp32 computes this piece below it. Gates decide near a threshold, embeddings are looked
    up, the head costs nothing: pieces of these stay fp32 at every precision. (A whole model is computed at its own;
    the engine's target says how its gates still decide in fp32.)"""
    return piece.startswith(_REDUCED)


class Piece(Protocol):
    """A loaded piece. Safe to call from many threads at once.

    Where an engine keeps hidden_states on a device, or in bfloat16, "array" means what the chain does with one: length,
    shape, rows taken out and put in, the next piece.
    """

    def __call__(self, *inputs: np.ndarray) -> Any:
        """Runs it on arrays in the piece's own order of inputs.

        Returns:
            its output, an array, or a tuple of them where it has several.
        """
        ...


@dataclass(frozen=True)
class EngineOptions:
    """
    Args:
        threads: the most threads one piece may compute with; `usable_cpus` if left out, and never more: a pool of a
            million threads would be made before the first call.
        spinning: let idle threads of a piece wait busily for as long as the library likes. Faster for one engine alone,
            ruinous for a chain of them: twelve pools then fight over the cores.

    Raises:
        EngineError: no number of threads, or no flag.
    """

    threads: int | None = None
    spinning: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            whole_number("threads", self.threads, error=EngineError)
        check_flag("spinning", self.spinning)

    @property
    def thread_count(self) -> int:
        cpus = usable_cpus()
        return cpus if self.threads is None else min(int(self.threads), cpus)


class Engine(Protocol):
    """Loads the pieces of a bundle, named `embeddings`, `layer_01`.., `gate_01`.., `gates`, `exit_01`.., `head`,
    `full`, `whole`.

    Attributes:
        portable: whether what was built once runs with every version and on every chip.
        reads: what its files are: ONNX, a library's own plans, or the file of weights that all pieces share.
        most_padding: tokens of it that a batch may have: more cost more than another call does.
    """

    portable: ClassVar[bool]
    reads: ClassVar[Literal["onnx", "plans", "weights"]]
    most_padding: ClassVar[int]

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions): ...

    def load(self, piece: str) -> Piece:
        """
        Raises:
            EngineError: the library refuses the file, or this machine cannot compute it in the precision asked for.
        """
        ...

    def close(self) -> None:
        """Lets go of what it keeps for its pieces, as far as no call is using it."""
        ...

    @staticmethod
    def versions() -> dict[str, str]:
        """Versions that decide whether a compiled engine still fits, by library."""
        ...

    @staticmethod
    def chip() -> str:
        """What an engine built here is for."""
        ...

    @staticmethod
    def why_not_here() -> str | None:
        """Why this machine cannot run what it may build; None if it can."""
        ...


class OnThisProcessor:
    """An engine that runs on the processor it is built on, from files that are tied to nothing."""

    portable = True
    most_padding = 128

    def close(self) -> None:
        """Nothing is kept beside the pieces, which go with whoever has them."""

    @staticmethod
    def chip() -> str:
        return chip()

    @staticmethod
    def why_not_here() -> str | None:
        return None
