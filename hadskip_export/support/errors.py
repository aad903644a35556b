"""The errors a user can meet, and the one way to ask for an optional library.

Every message is one line that names the file or option at fault and the remedy; the command line prints it and
exits with code 2.
"""

import importlib
from types import ModuleType

from hadskip_export.support.telemetry import switched_off

MOST_CHARACTERS = 2000  # of a message: enough for a path, a reason and a remedy


class HadskipError(Exception):
    """The request, the files or the machine are at fault. The message is one line that can be read, whatever it quotes:
    of a long one the middle is left out, and so are characters that do something to a terminal."""

    def __init__(self, message: str):
        if len(message) > MOST_CHARACTERS:  # its middle, for the file comes first and the remedy last
            message = f"{message[: MOST_CHARACTERS // 2]} [...] {message[-MOST_CHARACTERS // 2 + 7 :]}"
        super().__init__("".join(c if c.isprintable() else "\ufffd" for c in " ".join(message.splitlines())))


class BundleError(HadskipError):
    """A bundle, run folder or model folder is missing, damaged, unsafe or not supported."""


class EngineError(HadskipError):
    """An engine library is missing, or it refused what it was given; how to load it is no number or no flag."""


class DataError(HadskipError):
    """Input text or a labelled file cannot be used."""


class BudgetError(HadskipError):
    """What says how much is computed cannot be had: a budget, threshold, cap on layers, router, route or batch size."""


class RecipeError(HadskipError):
    """A training setting that does not exist or has a value it cannot have."""


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, in a line; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def optional_import(module: str, extra: str) -> ModuleType:
    """Imports a library that only some installs have; it reports nothing to its makers, see `telemetry`.

    Args:
        module: what to import, `onnxruntime` for instance.
        extra: the extra of this package that brings it; several are separated by ` or `.

    Raises:
        EngineError: it is not installed (the message names the extra), or a library of the system that it needs is not.
    """
    try:
        with switched_off():
            return importlib.import_module(module)
    except OSError as error:
        raise EngineError(f"this needs {module}, which lacks a library ({first_line(error)}); install that") from error
    except ImportError as error:
        names = " or ".join(f'pip install "hadskip-export[{name}]"' for name in extra.split(" or "))
        raise EngineError(
            f"this needs {module}, which cannot be imported ({first_line(error)}); install it with {names}"
        ) from error
