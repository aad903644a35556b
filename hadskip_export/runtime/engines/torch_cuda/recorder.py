"""What makes a program of what torch and the kernels are told to do: CUDA graphs (`graphs`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Program = Callable[[], None]


class Recorder(Protocol):
    """Makes programs of steps. Where a step reads and writes is fixed when it is recorded."""

    def record(self, step: Callable[[], None]) -> Program: ...

    def parted(self) -> AbstractContextManager[None]:
        """Within, what a step starts `beside` and what it starts else need not wait for each other."""
        ...

    def beside(self) -> AbstractContextManager[Any]:
        """What is started within must make no tensors: their memory would be given to the other side."""
        ...

    def alone(self) -> AbstractContextManager[Any]:
        """One thread at a time: buffers belong to all of them. Programs that are started within run in that order."""
        ...

    def in_order(self) -> AbstractContextManager[Any]:
        """The same for whatever torch is told to do, too."""
        ...

    def wait(self) -> None:
        """Until all that was started is done."""
        ...

    def at_rest(self) -> bool:
        """Whether it is."""
        ...
