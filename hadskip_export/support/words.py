"""How things are said: counts in a sentence, names that are no text, and commands as somebody would type them."""

import shlex
from collections.abc import Sequence


def counted(number: int, thing: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def printable(text: str) -> str:
    """With escapes for what UTF-8 lacks: halves of characters, which JSON may have, and bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_command(name: str, *arguments: object, **options: object) -> str:
    """A command of this package with what it was given: `hadskip-export bench bundle --data dev.csv`. Of options those
    that are None, False or empty were left out; one that takes several is said once for each."""
    words = ["hadskip-export", name, *map(str, arguments)]
    for option, given in options.items():
        flag = f"--{option.replace('_', '-')}"
        several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        for value in several:
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
