"""Memory of the chain of engines beside the full model in one session, after a batch of 32 x 128 tokens.

BERT-base size, random weights, every gate open: all twelve layers run, the most the chain can need.

    python benchmarks/memory.py
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import psutil

from hadskip_export.benchmark.estimate import SIZES
from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.runtime import Predictor

BATCH, TOKENS = 32, 128


def resident_after_batch(bundle: str, router: str) -> int:
    """Bytes resident once a batch has been answered; run in a process of its own."""
    with Predictor.load(bundle, router=router) as predictor:  # type: ignore[arg-type]
        predictor([text_of(TOKENS)] * BATCH, batch_size=BATCH, gate_threshold=-math.inf)
        return psutil.Process().memory_info().rss


@click.command()
@click.option("--measure", nargs=2, hidden=True, help="BUNDLE ROUTER: measure in this process.")
def main(measure: tuple[str, str] | None) -> None:
    if measure:
        click.echo(resident_after_batch(*measure))
        return
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        write_random_bundle(bundle, SIZES["bert-base"])
        resident = {}
        for router in ("gates", "full"):
            command = [sys.executable, __file__, "--measure", str(bundle), router]
            resident[router] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ratio = resident["gates"] / resident["full"]
    click.echo(
        f"resident after a batch of {BATCH} x {TOKENS}: chain {resident['gates'] / 1e6:.0f} MB, full model"
        f" {resident['full'] / 1e6:.0f} MB, ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
