"""Plain lines and a bar, both with what else there is to say."""

import sys

import pytest

from hadskip_export.support import progress
from hadskip_export.support.progress import track


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is ten seconds after the last."""
    now = 0.0

    def later() -> float:
        nonlocal now
        now += 10.0
        return now

    monkeypatch.setattr(progress.time, "monotonic", later)


def test_lines_go_on_from_what_was_done_before(capsys: pytest.CaptureFixture):
    assert list(track("abcd", 10, "batches", 6, lambda: ", loss 0.5")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == ["batches: 8/10, 20 s, loss 0.5", "batches: done in 50 s"]


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track("abcd", 10, "batches", 6, lambda: ", loss 0.5")) == list("abcd")
    shown = capsys.readouterr().err
    assert "6/10" in shown and "10/10" in shown and "batches, loss 0.5" in shown
