"""SIGTERM and SIGHUP unwind the stack."""

import signal

import pytest

from hadskip_export.support.errors import EngineError
from hadskip_export.support.signals import Ended, interruption, unwinding


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")], ids=["SIGTERM", "SIGHUP"]
)
def test_a_signal_unwinds_and_its_handler_goes(number: signal.Signals, word: str):
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    undone = []

    def work() -> None:
        with unwinding():
            try:
                signal.raise_signal(number)
            except Exception:  # what libraries do
                pytest.fail("swallowed")
            finally:
                undone.append(True)

    try:
        with pytest.raises(Ended, match=word) as caught:
            work()
        assert caught.value.exit_code == 128 + number and undone == [True]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_who_ignores_a_signal_or_handles_it_goes_on_doing_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with unwinding():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), Ended(signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_what_a_library_makes_of_a_signal_is_still_that_signal(reason: BaseException):
    """An import that was interrupted, as pybind11 tells of it."""
    failed = ImportError("initialization failed")
    failed.__cause__ = reason
    ours = EngineError("cannot be imported")
    ours.__cause__ = failed
    assert interruption(ours) is reason and interruption(reason) is reason
    assert interruption(failed.with_traceback(None)) is reason
    failed.__cause__ = OSError("no such file")
    assert interruption(ours) is None
