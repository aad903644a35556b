"""Inputs that come alone: what is gained by running them as one engine, `--single graph`, or by trying the commonest
route first, `--single guess`? One model of random weights, in each of these ways and through the chain, in turns.

    python benchmarks/single.py                                     # MiniLM's size, 28 tokens, 3 of 6, ort-fp32
    python benchmarks/single.py --model bert-base --tokens 64 --layers 6 ort-fp32 openvino-fp32

The guess is the first layers. Guessed right, wrong at the last gate that fires, wrong at the first gate: the worst that
can happen.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch

from hadskip_export.benchmark.random_bundle import text_of, write_tokenizer
from hadskip_export.commands.estimate import SIZES
from hadskip_export.exporters.write import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.bundle import HeldOut
from hadskip_export.runtime.engines import Single
from hadskip_export.runtime.predictor import CallOptions
from hadskip_export.runtime.tokenization import Text

CALLS = 20  # of a block


def write(out: Path, config: EncoderConfig, layers: int, engine: str, precision: str, single: Single) -> None:
    """A bundle, the same but for `single`. Every layer has weights of its own: in one file an engine would keep equal
    ones once."""
    torch.manual_seed(0)
    full = Classifier(config).init_weights()
    model = GatedClassifier(Classifier(config).init_weights())
    out.parent.mkdir(parents=True)
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    guess = tuple(range(1, layers + 1))
    seen = HeldOut(layers, ((guess, 1.0),), (0.0,) * (config.num_layers + 1), ((0.0,),) * config.num_layers, (0.5,))
    texts: list[Text] = [text_of(length) for length in (8, 16, 32)]
    source = Source(model, full, tokenizer, config.max_positions, 0.0, layers, "random", "accuracy", texts, seen)
    write_bundle(source, out, engine, precision, golden=texts, single=single)


def block(predictor: Predictor, text: str, route: np.ndarray | None) -> float:
    """Milliseconds of a call on a route, or of full BERT, the median of a block."""
    options: CallOptions = {"router": "full"} if route is None else {"routes": route[None]}
    found = []
    for _ in range(CALLS):
        started = time.perf_counter()
        predictor([text], **options)
        found.append(time.perf_counter() - started)
    return float(np.median(found)) * 1e3


@click.command()
@click.option("--model", type=click.Choice(sorted(SIZES)), default="minilm", show_default=True)
@click.option("--tokens", default=28, show_default=True)
@click.option("--layers", default=3, show_default=True, help="How many run.")
@click.option("--blocks", default=16, show_default=True)
@click.argument("names", nargs=-1)
def main(model: str, tokens: int, layers: int, blocks: int, names: tuple[str, ...]) -> None:
    """A call's time over that of the chain on the same route, and the hit rate above which guessing pays."""
    text, config = text_of(tokens), SIZES[model]
    places = np.arange(config.num_layers)
    right, late = places < layers, (places < layers - 1) | (places == layers)
    early = (places > 0) & (places <= layers)
    ways: dict[str, tuple[Single, np.ndarray | None]] = {
        "graph": ("graph", right),
        "guessed right": ("guess", right),
        "wrong at the last": ("guess", late),
        "wrong at the first": ("guess", early),
        "full BERT": ("chain", None),
    }
    for name in names or ("ort-fp32",):
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
            predictors = {}
            for single in ("chain", "graph", "guess"):
                bundle = Path(temporary) / single / "bundle"
                write(bundle, config, layers, *name.rsplit("-", 1), single)
                predictors[single] = opened.enter_context(Predictor.load(bundle))
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(blocks):
                for way, (single, route) in ways.items():
                    chain = block(predictors["chain"], text, right if route is None else route)
                    found[way].append((block(predictors[single], text, route), chain))
        ratios = {}
        for way, pairs in found.items():
            ours, theirs = np.array(pairs).T
            ratios[way] = float(np.median(ours / theirs))
            times = f"{np.median(ours):6.2f} ms, chain {np.median(theirs):6.2f}"
            click.echo(f"{name} {tokens} tokens, {layers} layers: {way:<18} {times}: {ratios[way]:.3f}")
        even = [(ratios[f"wrong at the {gate}"] - 1) for gate in ("last", "first")]
        low, high = (wrong / (wrong + 1 - ratios["guessed right"]) for wrong in even)
        click.echo(
            f"{name}: guessing pays above a hit rate of {low:.0%} (wrong at the last) to {high:.0%} (at the first)"
        )


if __name__ == "__main__":
    main()
