"""What a cut costs: one random model in every cut that an engine has, in one process, blocks of calls in turns, so that
all meet the same noise.

    python benchmarks/cuts.py                                           # BERT-base, 64 tokens, 6 layers, ort-fp32
    python benchmarks/cuts.py --model minilm --tokens 28 --layers 3 ort-fp32 openvino-fp32
    python benchmarks/cuts.py --batch 8 openvino-bf16                   # each input its own layers
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.commands.estimate import SIZES, draw_routes
from hadskip_export.exporters.amend import add_engine
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets import target_of
from hadskip_export.runtime import Predictor

CALLS = 20  # of a block


def block(predictor: Predictor, texts: list[str], routes: np.ndarray) -> float:
    """Seconds of a call, the median of a block."""
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        predictor(texts, routes=routes)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


@click.command()
@click.option("--model", type=click.Choice(sorted(SIZES)), default="bert-base", show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--layers", default=6, show_default=True, help="How many run.")
@click.option("--batch", default=1, show_default=True)
@click.option("--blocks", default=16, show_default=True)
@click.argument("names", nargs=-1)
def main(model: str, tokens: int, layers: int, batch: int, blocks: int, names: tuple[str, ...]) -> None:
    """Milliseconds of a call in each cut, and its share of the time in the engine's default one (median of blocks)."""
    random = np.random.default_rng(0)
    texts, num_layers = [text_of(tokens)] * batch, SIZES[model].num_layers
    routes = draw_routes(batch, num_layers, layers, "same" if batch == 1 else "mixed", random)
    for name in names or ("ort-fp32",):
        engine, _, precision = name.rpartition("-")
        first, *others = target_of(engine).cuts
        with tempfile.TemporaryDirectory() as temporary:
            bundle = Path(temporary) / "bundle"
            write_random_bundle(bundle, SIZES[model], EnginePlan(engine, precision, first))
            for cut in others:
                add_engine(bundle, EnginePlan(engine, precision, cut))
            predictors = {cut: Predictor.load(bundle, cut=cut) for cut in (first, *others)}
            found: dict[str, list[float]] = {cut: [] for cut in predictors}
            for _ in range(blocks):
                for cut in random.permutation(list(predictors)):
                    found[cut].append(block(predictors[cut], texts, routes))
            for cut, seconds in found.items():
                ratio = float(np.median(np.array(seconds) / np.array(found[first])))
                milliseconds = float(np.median(seconds)) * 1e3
                click.echo(
                    f"{name} {model}, {batch} x {tokens} tokens, {layers} layers: {cut:<6} {milliseconds:7.2f} ms"
                    f" {ratio:.3f}"
                )
            for predictor in predictors.values():
                predictor.close()


if __name__ == "__main__":
    main()
