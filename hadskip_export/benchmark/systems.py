"""Systems under test, each in its own process, and the turns they take."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from hadskip_export import errors
from hadskip_export.errors import HadskipError
from hadskip_export.progress import track
from hadskip_export.runtime.tokenization import Text

PAUSE = 0.002  # seconds after each call: a pool that spins has gone to sleep by then
CALLS_PER_TURN = 20


class System:
    """A bundle loaded in another process. Use it as a context manager.

    Args:
        bundle: the bundle's folder.
        options: keyword arguments of `Predictor.load`.
        texts: what calls may ask about, by position.
    """

    def __init__(self, bundle: str, options: dict[str, Any], texts: Sequence[Text]):
        self._load = {"bundle": bundle, "options": options, "texts": list(texts)}

    def __enter__(self) -> "System":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hadskip_export.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.ask("load", **self._load)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request, see `Worker`, and waits for the reply.

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


def take_turns(
    systems: dict[str, System], calls: Sequence[np.ndarray], turns: int, label: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Times every system on every call, `turns` times.

    A turn is a block of calls with a pause after each, as a service meets them; the order of the systems is drawn anew
    for each block. Were they to alternate call by call, each would find the caches full of the other's weights, which
    hurts most whichever alone would fit in them.

    Args:
        calls: rows of the systems' texts, int arrays; each call is one batch.

    Returns:
        Seconds by system, float [calls, turns].
    """
    random = np.random.default_rng(seed)
    names = list(systems)
    seconds = {name: np.zeros((len(calls), turns)) for name in names}
    for name in names:  # once through the longest call, to warm up
        systems[name].ask("call", rows=[int(row) for row in max(calls, key=len)])
    blocks = [
        (turn, first, names[position])
        for turn in range(turns)
        for first in range(0, len(calls), CALLS_PER_TURN)
        for position in random.permutation(len(names))
    ]
    for turn, first, name in track(blocks, len(blocks), label):
        for call in range(first, min(first + CALLS_PER_TURN, len(calls))):
            seconds[name][call, turn] = systems[name].ask("call", rows=[int(row) for row in calls[call]])["seconds"]
            time.sleep(PAUSE)
    return seconds


def faster(candidates: dict[str, System], calls: Sequence[np.ndarray], label: str) -> str:
    """The name of the candidate with the smaller total time, each call at the median of three turns."""
    seconds = take_turns(candidates, calls, turns=3, label=label)
    return min(seconds, key=lambda name: float(np.median(seconds[name], axis=1).sum()))
