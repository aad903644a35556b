"""From which hit rate on does guessing a route pay? One model of random weights, its first layers as the guess; calls
that take the guessed route, and calls that part from it at the first gate (the worst that can happen) or at the last,
with the guess and without it, in turns.

    python benchmarks/speculation.py                                     # MiniLM's size, 28 tokens, 3 of 6, ort-fp32
    python benchmarks/speculation.py --model bert-base --tokens 64 --layers 6 ort-fp32 openvino-fp32
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from hadskip_export.benchmark.estimate import SIZES
from hadskip_export.benchmark.random_bundle import text_of, write_tokenizer
from hadskip_export.exporters.from_run import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.bundle import HeldOut

CALLS = 20  # of a block


def write(out: Path, config: EncoderConfig, layers: int, engine: str, precision: str) -> None:
    """A bundle that guesses its first `layers` layers. Every layer has weights of its own: in one file an engine would
    keep equal ones once."""
    torch.manual_seed(0)
    model = GatedClassifier(Classifier(config).init_weights())
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    guess = tuple(range(1, layers + 1))
    seen = HeldOut(layers, ((guess, 1.0),), (0.0,) * (config.num_layers + 1), ((0.0,),) * config.num_layers, (0.5,))
    texts = [text_of(length) for length in (8, 16, 32)]
    source = Source(model, None, tokenizer, config.max_positions, 0.0, layers, "random", "accuracy", texts, seen)
    write_bundle(source, out, engine, precision, golden=texts, speculate=True)


def block(predictor: Predictor, text: str, route: np.ndarray) -> float:
    """Milliseconds of a call on a route, the median of a block."""
    found = []
    for _ in range(CALLS):
        started = time.perf_counter()
        predictor([text], routes=route[None])
        found.append(time.perf_counter() - started)
    return float(np.median(found)) * 1e3


@click.command()
@click.option("--model", type=click.Choice(sorted(SIZES)), default="minilm", show_default=True)
@click.option("--tokens", default=28, show_default=True)
@click.option("--layers", default=3, show_default=True, help="How many run, guessed right or not.")
@click.option("--blocks", default=16, show_default=True)
@click.argument("names", nargs=-1)
def main(model: str, tokens: int, layers: int, blocks: int, names: tuple[str, ...]) -> None:
    """A call's time with a guess over its time without one, and the hit rate at which the two are even."""
    text, config = text_of(tokens), SIZES[model]
    places = np.arange(config.num_layers)
    routes = {
        "guessed right": places < layers,
        "wrong at the last": (places < layers - 1) | (places == layers),
        "wrong at the first": (places > 0) & (places <= layers),
    }
    for name in names or ("ort-fp32",):
        with tempfile.TemporaryDirectory() as temporary:
            bundle = Path(temporary) / "bundle"
            write(bundle, config, layers, *name.rsplit("-", 1))
            with Predictor.load(bundle) as guessing, Predictor.load(bundle) as plain:
                plain.guess = None
                found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in routes}
                for _ in range(blocks):
                    for kind, route in routes.items():
                        found[kind].append((block(guessing, text, route), block(plain, text, route)))
        ratios = {}
        for kind, pairs in found.items():
            ours, theirs = np.array(pairs).T
            ratios[kind] = float(np.median(ours / theirs))
            click.echo(
                f"{name} {kind:<18} {np.median(ours):6.2f} ms, without {np.median(theirs):6.2f}: {ratios[kind]:.3f}"
            )
        right = ratios["guessed right"]
        even = [(wrong - 1) / (wrong - right) for kind, wrong in ratios.items() if kind.startswith("wrong")]
        click.echo(
            f"{name} pays above a hit rate of {even[0]:.0%} (wrong at the last gate) to {even[1]:.0%} (at the first)"
        )


if __name__ == "__main__":
    main()
