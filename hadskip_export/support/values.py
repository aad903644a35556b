"""Which values an option takes. Of the usual types nothing but the type is looked at: a call asks."""

import numbers
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from hadskip_export.support.errors import BudgetError, DataError, EngineError, HadskipError
from hadskip_export.support.words import printable

T = TypeVar("T")
SHOWN = 60  # characters of what is refused


def whole_number(option: str, value: object, most: int | None = None, error: type[HadskipError] = BudgetError) -> int:
    """A number of things, from 1 to `most`.

    Raises:
        error: it is something else.
    """
    number = value if type(value) is int else _integral(value)
    if number < 1 or (most is not None and number > most):
        expected = "at least 1" if most is None else f"1 to {most}"
        raise error(f"{option}={value!r}: expected a whole number, {expected}")
    return number


def _integral(value: object) -> int:
    """NumPy's integers as Python's; 0, which no option takes, for what is no whole number: True is not."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else 0


def real_number(option: str, value: object) -> float:
    """
    Raises:
        BudgetError: not a number, or one that is not within a float's range.
    """
    if type(value) is float:
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise BudgetError(f"{option}={value!r}: expected a number")


def several(option: str, given: Iterable[T]) -> tuple[T, ...]:
    """Things in an order.

    Raises:
        DataError: one thing where several are meant: of a text Python would make its letters, of a mapping its keys.
    """
    if isinstance(given, str | bytes | Mapping | set | frozenset) or not isinstance(given, Iterable):
        raise DataError(f"{option}={printable(repr(given))[:SHOWN]}: expected a list")
    return tuple(given)


def check_flag(option: str, value: object) -> None:
    """
    Raises:
        EngineError: neither True nor False: of a text such as "no", Python would make True.
    """
    if not isinstance(value, bool | np.bool_):
        raise EngineError(f"{option}={value!r}: expected True or False")
