"""Memory of a Predictor beside full BERT in the same engine, after a batch of 32 x 512 tokens.

BERT-base size, random weights, every gate open: all twelve layers run, which takes the most. What answers single inputs
is loaded too, and warm. Two figures, both of Linux: what the process holds of the machine's memory, its share of each
page by how often that is mapped here and elsewhere (proportional set size), and its resident set, which counts the
pages of a file mapped by two graphs twice.

    python benchmarks/memory.py                                    # every engine and precision that runs here
    python benchmarks/memory.py --tokens 128 ort-fp32 openvino-bf16
    python benchmarks/memory.py --cut gates openvino-bf16          # every layer and gate an engine of its own
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import click
import psutil

from hadskip_export.exporters.targets import target_of
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import ENGINES, Cut, engine_class

BATCH = 32


def held_after_batch(bundle: str, engine: str, router: str, tokens: int) -> tuple[int, int]:
    """Bytes held, and resident, once a batch has been answered; run in a process of its own."""
    with Predictor.load(bundle, engine=engine, router=router) as predictor:  # type: ignore[arg-type]
        predictor([" ".join(["word"] * (tokens - 2))] * BATCH, batch_size=BATCH, gate_threshold=-math.inf)
        memory = psutil.Process().memory_full_info()
        return memory.pss, memory.rss


def engines_here() -> list[str]:
    runnable = [name for name in ENGINES if engine_class(name).why_not_here() is None]
    return [f"{name}-{precision}" for name in runnable for precision in target_of(name).precisions]


@click.command()
@click.option("--tokens", default=512, show_default=True)
@click.option("--cut", type=click.Choice(get_args(Cut)), help="The engine's fastest if left out.")
@click.option("--measure", nargs=3, hidden=True, help="BUNDLE ENGINE ROUTER: measure in this process.")
@click.argument("names", nargs=-1)
def main(tokens: int, cut: Cut | None, measure: tuple[str, str, str] | None, names: tuple[str, ...]) -> None:
    if measure:
        click.echo(json.dumps(held_after_batch(*measure, tokens)))
        return
    # Not above: they bring torch, which a process that serves does not hold.
    from hadskip_export.benchmark.random_bundle import write_random_bundle
    from hadskip_export.commands.estimate import SIZES
    from hadskip_export.exporters.plan import EnginePlan

    for name in names or engines_here():
        with tempfile.TemporaryDirectory() as temporary:
            bundle = Path(temporary) / "bundle"
            engine, _, precision = name.rpartition("-")
            write_random_bundle(bundle, SIZES["bert-base"], EnginePlan.of(engine, precision, cut))
            found = {}
            for router in ("gates", "full"):
                command = [sys.executable, __file__, "--tokens", str(tokens), "--measure", str(bundle), name, router]
                found[router] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            click.echo(f"{name}, after a batch of {BATCH} x {tokens}:")
            for kind, gated, full in zip(("held", "resident"), found["gates"], found["full"], strict=True):
                ratio = f"ratio {gated / full:.2f}"
                click.echo(f"  {kind}: gated {gated / 1e6:.0f} MB, full BERT {full / 1e6:.0f} MB, {ratio}")


if __name__ == "__main__":
    main()
