"""Systems under test, each in its own process, and the turns they take."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

import hadskip_export
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support import errors
from hadskip_export.support.errors import HadskipError
from hadskip_export.support.progress import track

MOST_CALLS = 100
CALLS_PER_TURN = 20
PAUSE = 0.02  # seconds after each turn, again and again until its threads are asleep: some spin for 300 ms
MOST_PAUSES = 50


class Process:
    """A program that answers requests, see `outside.replies`, and has nothing else to do. Use it as a context manager.

    Args:
        command: what runs it.
        environment: its environment variables.
        load: arguments of its request `load`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], load: Mapping[str, Any]):
        self._command, self._environment, self._load = command, environment, load
        self.loaded: dict[str, Any] = {}  # what it replied

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.loaded = self.ask("load", **self._load)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for the reply.

        Raises:
            HadskipError: what the worker raised, or that it died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"request": request} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise HadskipError(f"the benchmark's worker process died ({request}); is there enough memory?")
        reply = json.loads(line)
        if "error" in reply:
            raise getattr(errors, reply["kind"], HadskipError)(reply["error"])
        return reply


class System(Process):
    """A bundle loaded in another process, see `Worker`.

    Args:
        bundle: the bundle's folder.
        options: keyword arguments of `Predictor.load`.
        texts: what calls may ask about, by position.
        routes: the layers that each text runs, bool [texts, L]; left to the gates if None.
    """

    def __init__(self, bundle: str, options: dict[str, Any], texts: Sequence[Text], routes: np.ndarray | None = None):
        forced = None if routes is None else routes.tolist()
        super().__init__(
            [sys.executable, "-P", "-m", "hadskip_export.benchmark.worker"],
            _environment(),
            {"bundle": bundle, "options": options, "texts": list(texts), "routes": forced},
        )


def _environment() -> dict[str, str]:
    """The worker's. With `-P`, and without relative places, it imports nothing from the current folder, where a file
    may be called numpy.py; only where that is the very place that this process has the package from, it is named."""
    place = Path(hadskip_export.__file__).resolve().parents[1]
    named = [str(place)] if Path(sys.path[0]).resolve() == place else []
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*named, *others])}


def choose_calls(texts: int, batch: int, seed: int = 0) -> list[np.ndarray]:
    """At most `MOST_CALLS` calls of `batch` different texts each, drawn at random; int arrays of row numbers."""
    order = np.random.default_rng(seed).permutation(texts)
    return [order[start : start + batch] for start in range(0, texts - batch + 1, batch)][:MOST_CALLS]


@dataclass(frozen=True)
class Turns:
    """What the systems took.

    Args:
        seconds: by system, float [calls, turns].
        idle_share: by system, processor time it used while others were timed, as a share of one core.
    """

    seconds: dict[str, np.ndarray]
    idle_share: dict[str, float]


def take_turns(
    systems: Mapping[str, Process], calls: Sequence[np.ndarray], turns: int, label: str, seed: int = 0
) -> Turns:
    """Times every system on every call, `turns` times.

    A turn is a block of calls made one after the other; the order of the systems is drawn anew for each block. Were
    they to alternate call by call, each would find the caches full of the other's weights, which hurts most whichever
    alone would fit in them, and every call would begin on cores that have just gone to sleep.

    Args:
        calls: rows of the systems' texts, int arrays; each call is one batch.
    """
    random = np.random.default_rng(seed)
    rows = [[int(row) for row in call] for call in calls]
    seconds = {name: np.zeros((len(calls), turns)) for name in systems}
    idle: defaultdict[str, float] = defaultdict(float)
    watched: defaultdict[str, float] = defaultdict(float)
    for system in systems.values():  # once through the longest call, to warm up
        system.ask("calls", calls=[max(rows, key=len)])
        _wait_until_asleep(system)
    blocks = list(_blocks(list(systems), len(calls), turns, random))
    for turn, first, name in track(blocks, len(blocks), label):
        others = {other: system for other, system in systems.items() if other != name}
        before = {other: system.ask("cpu")["seconds"] for other, system in others.items()}
        started = time.perf_counter()
        block = slice(first, first + CALLS_PER_TURN)
        seconds[name][block, turn] = systems[name].ask("calls", calls=rows[block])["seconds"]
        for other, system in others.items():
            idle[other] += system.ask("cpu")["seconds"] - before[other]
            watched[other] += time.perf_counter() - started
        _wait_until_asleep(systems[name])
    return Turns(seconds, {name: idle[name] / watched[name] for name in watched})


def _wait_until_asleep(system: Process) -> None:
    """Returns when the system's threads rest, or after a second: then `idle_share` tells."""
    used = system.ask("cpu")["seconds"]
    for _ in range(MOST_PAUSES):
        time.sleep(PAUSE)
        before, used = used, system.ask("cpu")["seconds"]
        if used - before < PAUSE / 10:
            return


def _blocks(names: list[str], calls: int, turns: int, random: np.random.Generator) -> Iterator[tuple[int, int, str]]:
    """(turn, first call, system) in the order in which they are timed."""
    for turn in range(turns):
        for first in range(0, calls, CALLS_PER_TURN):
            for position in random.permutation(len(names)):
                yield turn, first, names[position]
