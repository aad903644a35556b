"""SIGTERM and SIGHUP unwind the stack."""

import signal

import pytest

from hadskip_export.support.signals import Ended, unwinding


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
