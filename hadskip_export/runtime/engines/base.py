"""What the runtime asks of an engine: load a piece, run it. Nothing else."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from hadskip_export.support.environment import chip
from hadskip_export.support.errors import EngineError

# `separate`: each gate an engine of its own, asked before its layer. `lookahead`: one engine for all gates, asked after
# the embeddings and each layer that ran. `fused`: the same, but after a layer they are part of the layer's engine.
GateLayout = Literal["separate", "lookahead", "fused"]
# How an input that comes alone is run: by the chain, as batches then are; by one engine of the commonest route first
# (`Speculation`); by one engine of the whole gated model (`Conditional`).
Single = Literal["chain", "guess", "graph"]
# What runs a batch where single inputs have a graph: the chain; that graph, in which each layer then takes the rows
# that run it; such a graph of their own, where one with an `If` per layer is faster for single inputs.
Batches = Literal["chain", "graph", "rows"]
UNBOUNDED = sys.maxsize  # padding, on a device that computes many tokens in the time of a few
_REDUCED = ("layer", "full", "guess", "graph", "rows")


def is_reduced(piece: str) -> bool:
    """Whether an engine below fp32 computes this piece below it. Gates decide near a threshold, embeddings are looked
    up, the head costs nothing: pieces of these stay fp32 at every precision. (One engine of all of them is
    computed at its own; exporters/conditional.py says how its gates still decide in fp32.)"""
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


def usable_cpus() -> int:
    """CPUs this process may run on: its affinity where the system has such a thing, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class EngineOptions:
    """
    Args:
        threads: the most threads one piece may compute with; the CPUs this process may use, if left out.
        spinning: let idle threads of a piece wait busily for as long as the library likes. Faster for one engine alone,
            ruinous for a chain of them: twelve pools then fight over the cores.
    """

    threads: int | None = None
    spinning: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(f"threads={self.threads}: expected at least 1")

    @property
    def thread_count(self) -> int:
        return self.threads or usable_cpus()


class Engine(Protocol):
    """Loads the pieces of a bundle, named `embeddings`, `layer_01`.., `gate_01`.., `gates`, `head`, `full`,
    `guess`, `graph`, `rows`.

    Attributes:
        precisions: those it can be built with.
        portable: whether what was built once runs with every version and on every chip.
        reads: what its files are: ONNX, a library's own plans, or one file of weights for all pieces.
        batches: what runs a batch where single inputs have a graph.
        most_padding: tokens of it that a batch may have: more cost more than another call does.
        bf16_states: whether hidden_states are bfloat16 between its pieces when layers are; embeddings, gates and head
            compute in fp32 all the same.
    """

    precisions: ClassVar[tuple[str, ...]]
    portable: ClassVar[bool]
    reads: ClassVar[Literal["onnx", "plans", "weights"]]
    batches: ClassVar[Batches]
    most_padding: ClassVar[int]
    bf16_states: ClassVar[bool]

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions): ...

    def load(self, piece: str) -> Piece:
        """
        Raises:
            EngineError: the library refuses the file, or this machine cannot compute it in the precision asked for.
        """
        ...

    @staticmethod
    def layouts(precision: str) -> tuple[GateLayout, ...]:
        """How its gates can be laid out, the fastest first (docs/performance.md)."""
        ...

    @staticmethod
    def singles(precision: str) -> tuple[Single, ...]:
        """How an input that comes alone can be run, first how it is unless somebody wants it otherwise."""
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
    bf16_states = False

    @staticmethod
    def chip() -> str:
        return chip()

    @staticmethod
    def why_not_here() -> str | None:
        return None
