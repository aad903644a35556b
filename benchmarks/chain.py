"""Speedup of the chain of engines over full BERT: BERT-base size, random weights, 6 of 12 gates forced open, batch 1.

python benchmarks/chain.py [--seq 64 --seq 128] [--json chain.json]
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np
from random_bundle import BERT_BASE, text_of, write_random_bundle

from hadskip_export.benchmark.bench import MOST_CALLS, measure
from hadskip_export.environment import environment
from hadskip_export.runtime.bundle import read_bundle

OPEN = (1, 3, 5, 7, 9, 11)


@click.command()
@click.option("--seq", type=int, multiple=True, default=(64, 128), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Keep the bundle there, and use it if it is there.")
def main(seq: tuple[int, ...], json_file: Path | None, bundle: Path | None) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        bundle = bundle or Path(temporary) / "bundle"
        if not bundle.is_dir():
            write_random_bundle(bundle, OPEN, BERT_BASE)
        opened = read_bundle(bundle)
        for length in seq:
            texts = [text_of(length)] * MOST_CALLS
            lengths = np.full(len(texts), length)
            info, model = opened.engine(), opened.manifest.model
            rows += measure(str(bundle), info, model, texts, lengths, (1,), "accuracy", None)
    click.echo("\n\n".join("\n".join(row.lines()) for row in rows))
    if json_file is not None:
        json_file.write_text(json.dumps({"environment": environment(), "rows": [row.__dict__ for row in rows]}) + "\n")


if __name__ == "__main__":
    main()
