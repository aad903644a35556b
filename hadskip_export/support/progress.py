"""One progress bar for everything long: a bar on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    """A line for the person watching; standard output stays free for results."""
    click.echo(text, err=True)


def track(items: Iterable[T], length: int, label: str) -> Iterator[T]:
    """Yields `items` while showing on stderr how many of `length` are done."""
    if sys.stderr.isatty():
        with click.progressbar(items, length=length, label=label, file=sys.stderr, show_pos=True) as bar:
            yield from bar
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES and done < length:
            last = now
            say(f"{label}: {done}/{length}, {now - started:.0f} s")
    say(f"{label}: done in {time.monotonic() - started:.0f} s")
