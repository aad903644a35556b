"""Files of which nobody knows yet what they are: nothing is waited for, and no more is read than there should be."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader]:
    """A regular file, for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder: none of them is waited for.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(file, "rb", opener=without_waiting) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        yield handle


def read_at_most(file: Path, most: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: see `opened`; also more than `most` bytes, which are not read.
    """
    with opened(file) as handle:
        size = os.fstat(handle.fileno()).st_size
        content = handle.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise OSError(errno.EINVAL, f"{size:,} bytes; at most {most:,} are read", str(file))
    return content
