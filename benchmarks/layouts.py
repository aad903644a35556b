"""What the layout of the gates costs: the same random model in every layout that an engine has, in one process, blocks
of calls in turns, so that all meet the same noise.

    python benchmarks/layouts.py                                           # BERT-base, 64 tokens, 6 layers, ort-fp32
    python benchmarks/layouts.py --model minilm --tokens 28 --layers 3 ort-fp32 openvino-fp32
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.commands.estimate import SIZES
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import engine_class

CALLS = 20  # of a block


def block(predictor: Predictor, text: str, layers: int) -> float:
    """Seconds of a call, the median of a block. All gates fire, so the first `layers` layers run."""
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        predictor(text, max_layers=layers)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


@click.command()
@click.option("--model", type=click.Choice(sorted(SIZES)), default="bert-base", show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--layers", default=6, show_default=True, help="How many run.")
@click.option("--blocks", default=16, show_default=True)
@click.argument("names", nargs=-1)
def main(model: str, tokens: int, layers: int, blocks: int, names: tuple[str, ...]) -> None:
    """Milliseconds of a call in each layout, and its share of the default one's time (median of blocks)."""
    random = np.random.default_rng(0)
    for name in names or ("ort-fp32",):
        engine, _, precision = name.rpartition("-")
        with tempfile.TemporaryDirectory() as temporary:
            predictors = {}
            for gates in engine_class(engine).layouts(precision):
                bundle = Path(temporary) / gates / "bundle"
                write_random_bundle(bundle, SIZES[model], engine, precision, gates, single="chain")
                predictors[gates] = Predictor.load(bundle)
            found: dict[str, list[float]] = {gates: [] for gates in predictors}
            for _ in range(blocks):
                for gates in random.permutation(list(predictors)):
                    found[gates].append(block(predictors[gates], text_of(tokens), layers))
            first = np.array(next(iter(found.values())))
            for layout, seconds in found.items():
                ratio = float(np.median(np.array(seconds) / first))
                milliseconds = float(np.median(seconds)) * 1e3
                click.echo(f"{name} {tokens} tokens, {layers} layers: {layout:<9} {milliseconds:7.2f} ms {ratio:.3f}")
            for predictor in predictors.values():
                predictor.close()


if __name__ == "__main__":
    main()
