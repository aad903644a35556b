"""What is shown beside the batches done, by a clock that the tests set."""

import pytest
import torch

from hadskip_export.trainers import display
from hadskip_export.trainers.display import Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its first element is the time."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def see(shown: Display, clock: list[float], batches: int, seconds: float, loss: float = 1.0) -> None:
    for _ in range(batches):
        clock[0] += seconds
        shown.saw(torch.tensor(loss))


def test_the_time_left_is_that_of_all_phases_by_what_a_batch_took(clock):
    shown = Display(100)
    assert str(shown) == ""
    see(shown, clock, 1, 50.0)  # the first does not count
    assert str(shown) == ", loss 1.000"
    see(shown, clock, 9, 2.0)
    assert str(shown) == ", loss 1.000, 3 min left"  # 90 of 2 s
    see(shown, clock, 65, 2.0)
    assert str(shown).endswith(", 50 s left")
    see(shown, clock, 25, 2.0)
    assert "left" not in str(shown)


def test_what_a_stopped_run_had_done_is_not_left(clock):
    shown = Display(100)
    shown.skip(60)
    see(shown, clock, 11, 3.0)
    assert str(shown).endswith(", 1 min left")  # 29 of 3 s


def test_each_phase_has_its_own_loss_and_held_out_figure(clock):
    shown = Display(100)
    see(shown, clock, 2, 1.0, 2.0)
    shown.held_out = 0.75
    assert str(shown).startswith(", loss 2.000, held out 0.750")
    see(shown, clock, 1, 1.0, 1.0)
    assert str(shown).startswith(", loss 1.950")
    shown.new_phase()
    assert str(shown) == ", 2 min left"
    see(shown, clock, 1, 1.0, 1.0)
    assert str(shown).startswith(", loss 1.000, 2 min left")
