"""One progress bar for everything long: a bar on a terminal, plain lines now and then elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import click

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_LOOKS = 1.0  # of a bar, at what else there is to say


def speaks() -> bool:
    """Whether this process is the one to say something: of several that torchrun started the first."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def say(text: str) -> None:
    """A line for the person watching; standard output stays free for results."""
    if speaks():
        click.echo(text, err=True)


def track(
    items: Iterable[T], length: int, label: str, begun: int = 0, about: Callable[[], str] = lambda: ""
) -> Iterator[T]:
    """Yields `items` while showing on stderr how many of `length` are done.

    Args:
        begun: how many were done before, and are not among `items`.
        about: what else there is to say, asked now and then.
    """
    if not speaks():
        yield from items
        return
    started = last = time.monotonic()
    if sys.stderr.isatty():
        with click.progressbar(
            length=length, label=label, file=sys.stderr, show_pos=True, show_eta=not begun, width=0
        ) as bar:
            bar.update(begun)
            for item in items:
                yield item
                now = time.monotonic()
                if now - last > SECONDS_BETWEEN_LOOKS:
                    last = now
                    bar.label = f"{label}{about()}"
                bar.update(1)
        return
    for done, item in enumerate(items, start=begun + 1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES and done < length:
            last = now
            say(f"{label}: {done}/{length}, {now - started:.0f} s{about()}")
    say(f"{label}: done in {time.monotonic() - started:.0f} s")
