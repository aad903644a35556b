"""One process at a time in a folder, by a lock of the kernel's, which dies with who holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


@contextmanager
def alone(lock: Path, taken: Exception, patience: float = 0) -> Iterator[None]:
    """While nobody else holds `lock`, a file that is made and stays.

    Args:
        taken: what is raised where another process holds it.
        patience: seconds to wait for that one.
    """
    held = filelock.FileLock(lock, timeout=patience)
    try:
        held.acquire()
    except filelock.Timeout:
        raise taken from None
    try:
        yield
    finally:
        held.release()
