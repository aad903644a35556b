"""SIGTERM and SIGHUP end a command as Ctrl-C does: the stack unwinds, and what is half-written is removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WORDS = {"SIGTERM": "terminated", "SIGHUP": "hung up"}  # by name: Windows has only the first


class Ended(BaseException):
    """Somebody wants this process to end. No `Exception`, which libraries catch."""

    def __init__(self, number: int):
        super().__init__(WORDS[signal.Signals(number).name])
        self.exit_code = 128 + number  # as shells have it


@contextmanager
def unwinding() -> Iterator[None]:
    """Meanwhile these signals raise `Ended`, unless whoever started this process has them do something else."""
    ours = []
    if threading.current_thread() is threading.main_thread():  # Python lets no other set a handler
        numbers = [getattr(signal, name) for name in WORDS if hasattr(signal, name)]
        ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def interruption(error: BaseException) -> BaseException | None:
    """What wanted the process to end and came while `error` was made of it: libraries in C++ turn it into an error of
    their own, an import that fails perhaps. None of an error that is one."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, KeyboardInterrupt | Ended):
        behind = behind.__cause__ or behind.__context__
    return behind


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)
