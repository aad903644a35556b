"""What an optimisation will do in the time it has, kept so that one that was stopped goes on with the same."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.support.files import replaced
from hadskip_export.tuning.loss import fewest_texts

FILE = "plan.json"
CHOSEN_ON = 0.3  # of the texts, but no fewer than show the loss
CHOSEN_ON_MOST = 2000
FEWEST = 100  # texts to learn from
TRAINING = 0.6  # of the minutes; the rest is for engines, operating points and the race
BESIDES = 1.5  # epochs, in time, that the gates and the figures take
MOST_EPOCHS = 12  # more gained nothing, on 1,260 texts of SST-2


@dataclass(frozen=True)
class Plan:
    """
    Args:
        engines: as `ort-int8`; each has a trial.
        learned, chosen_on: how many texts there are to learn from, and to choose on.
        epochs: over the texts to learn from.
        training_minutes: that they are expected to take; None where the number of epochs was given.
    """

    engines: tuple[str, ...]
    learned: int
    chosen_on: int
    epochs: int
    training_minutes: float | None


def held_back(texts: int, max_loss: float | None, what: str = "different texts") -> int:
    """How many of the texts to choose on.

    Args:
        what: is counted, see `units_of`.

    Raises:
        DataError: too few are left to learn from, or there are too few to show the loss.
    """
    need = 1 if max_loss is None else fewest_texts(max_loss)
    count = max(need, min(CHOSEN_ON_MOST, round(CHOSEN_ON * texts)))
    if texts - count < FEWEST:
        shown = "" if max_loss is None else f" to show a loss of {max_loss:g} and"
        raise DataError(
            f"--data: {texts} {what} are too few: {count} of them are held back{shown} to choose on, and {FEWEST} are"
            f" needed to learn from; give at least {count + FEWEST}"
        )
    return count


def what_fits(minutes: float, texts: int, seconds_per_text: float) -> tuple[int, int, float]:
    """(texts to learn from, epochs, minutes they are expected to take): fewer texts where one epoch takes too long.

    Raises:
        DataError: there is no time for the fewest.
    """
    each = seconds_per_text / 60
    learned = min(texts, math.floor(TRAINING * minutes / (each * (1 + BESIDES))))
    if learned < min(texts, FEWEST):
        need = FEWEST * each * (1 + BESIDES) / TRAINING
        raise DataError(
            f"--minutes {minutes:g}: {FEWEST} texts take some {math.ceil(need)} minutes here; give more, shorten the"
            " texts with --max-length, or train on a GPU with --device"
        )
    epochs = max(1, min(MOST_EPOCHS, math.floor(TRAINING * minutes / (learned * each) - BESIDES)))
    return learned, epochs, (epochs + BESIDES) * learned * each


def write_plan(folder: Path, asked: dict[str, Any], plan: Plan) -> None:
    """`asked`: what the plan depends on, JSON."""
    with replaced(folder / FILE) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode({"asked": asked, "plan": asdict(plan)})))


def read_plan(folder: Path, asked: dict[str, Any]) -> Plan | None:
    """That of an optimisation that was stopped; None where nothing was begun.

    Raises:
        BundleError: it was asked for something else, or is damaged.
    """
    if not folder.exists() or (folder.is_dir() and all(file.name == f".{FILE}.part" for file in folder.iterdir())):
        return None
    try:
        found = msgspec.json.decode((folder / FILE).read_bytes())
        before, plan = msgspec.convert(found["asked"], dict[str, Any]), msgspec.convert(found["plan"], Plan)
    except (OSError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: not of an optimisation; remove it, or name another with --work") from error
    different = [
        name for name, value in msgspec.json.decode(msgspec.json.encode(asked)).items() if before.get(name) != value
    ]
    if different:
        raise BundleError(
            f"{folder}: holds an optimisation with another {different[0]}; repeat that command, remove the folder, or"
            " name another with --work"
        )
    return plan
