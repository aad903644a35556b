"""What a forked child may do with the engines of its parent: nothing, not even let go of them.

The threads of an engine stay in the parent. A child that destroys the engine, or that ends, would wait for them
forever. So a child keeps what it inherited until it is gone, and loads its own, where the engine can (OpenVINO cannot).
"""

import ctypes
import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """What is told that it is in a child now."""

    def leave_to_parent(self) -> None: ...


_living: WeakSet[Inherited] = WeakSet()


def watch(holder: Inherited) -> None:
    """Has `holder` told in every child that is forked from now on."""
    _living.add(holder)


def never_destroy(*objects: object) -> None:
    """Not even when Python ends: they have a reference that nobody gives back."""
    for kept in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _in_child() -> None:
    for holder in list(_living):
        holder.leave_to_parent()
    _living.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
