"""Old against new: two versions of this package, each in an environment of its own, on the same inputs in turns.

Each answers with a bundle that it built itself, in a worker process of its own; a turn is a block of calls. Every input
runs half of the layers, its own ones, or all of them in full BERT.

    python benchmarks/versions.py old/.venv/bin/python old-bundle ort new/.venv/bin/python new-bundle ort-fp32-layers
    python benchmarks/versions.py --full --batch 8 PYTHON BUNDLE ENGINE PYTHON BUNDLE ENGINE
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

CALLS = {1: 16, 8: 6}
WORD = "word"  # what random bundles have


class Worker:
    """A version's `hadskip_export.benchmark.worker`, whose requests have not changed."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"request": request} | arguments) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise SystemExit(reply["error"])
        return reply

    def memory(self) -> dict[str, int]:
        """Megabytes, proportional and resident, as Linux counts them."""
        lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        fields = (line.split() for line in lines if line.startswith(("Pss:", "Rss:")))
        return {name.rstrip(":").lower(): int(size) // 1024 for name, size, _ in fields}


@contextmanager
def worker(python: str) -> Iterator[Worker]:
    command = [python, "-m", "hadskip_export.benchmark.worker"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/"
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


@click.command()
@click.option("--tokens", default=64, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--turns", default=16, show_default=True)
@click.option("--full", is_flag=True, help="Full BERT in place of the gated model.")
@click.argument("systems", nargs=6, metavar="PYTHON BUNDLE ENGINE PYTHON BUNDLE ENGINE")
def main(tokens: int, batch: int, turns: int, full: bool, systems: tuple[str, ...]) -> None:
    """Print the second one's time over the first one's, and what each took to load and holds."""
    random, inputs = np.random.default_rng(0), 64
    texts = [" ".join([WORD] * (tokens - 2))] * inputs
    layers = json.loads((Path(systems[1]) / "manifest.json").read_text())["model"]["layers"]
    routes = random.permuted(np.tile(np.arange(layers) < layers // 2, (inputs, 1)), axis=1)
    calls = [[(first + row) % inputs for row in range(batch)] for first in range(0, CALLS.get(batch, 6) * batch, batch)]
    with ExitStack() as stack:
        workers = []
        for python, bundle, engine in (systems[:3], systems[3:]):
            workers.append(stack.enter_context(worker(python)))
            options = {"engine": engine} | ({"router": "full"} if full else {})
            started = time.perf_counter()
            workers[-1].ask(
                "load", bundle=bundle, options=options, texts=texts, routes=None if full else routes.tolist()
            )
            click.echo(f"{engine}: loaded in {time.perf_counter() - started:.1f} s, MB {workers[-1].memory()}")
        for one in workers:
            one.ask("calls", calls=calls[:2])
        milliseconds = np.zeros((turns, 2))
        for turn in range(turns):
            for place in random.permutation(2):
                time.sleep(0.05)  # the other one's threads fall asleep
                milliseconds[turn, place] = 1e3 * np.median(workers[place].ask("calls", calls=calls)["seconds"])
        low, median, high = np.quantile(milliseconds[:, 1] / milliseconds[:, 0], [0.25, 0.5, 0.75])
        old, new = np.median(milliseconds, axis=0)
        click.echo(
            f"{batch} x {tokens} tokens: {old:.2f} ms, {new:.2f} ms, ratio {median:.3f} (quartiles {low:.3f} to"
            f" {high:.3f} of {turns} turns); MB {workers[0].memory()} and {workers[1].memory()}"
        )


if __name__ == "__main__":
    main()
