"""What Python costs between the engines: a Predictor's calls beside the bare engines, called one after the other with
inputs made before, in turns. The difference is everything of a call that is neither tokenising nor engine time.

    python benchmarks/overhead.py            # MiniLM's size, 28 tokens, ort-fp32
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.commands.estimate import SIZES
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.tokenization import pad


def bare(predictor: Predictor, text: str, layers: int) -> Callable[[], object]:
    """The engines that a call runs, and the tokeniser, with nothing between them."""
    chain, encode = predictor.load_chain(), predictor.tokenizer.encode
    batch = pad(encode([text]))
    inputs, mask = [getattr(batch, name) for name in chain.embedding_inputs], batch.attention_mask
    hidden, _ = chain.layers[0](chain.embeddings(*inputs), mask)
    pieces = [chain.layers[index] for index in range(layers)]

    def call() -> None:
        encode([text])
        first = chain.embeddings(*inputs)
        if chain.all_gates is not None:
            chain.all_gates(first, mask)
        for piece in pieces:
            piece(hidden, mask)
        chain.head(hidden)

    return call


def call_with(predictor: Predictor, chain: Chain, text: str) -> None:
    predictor.gated = chain
    predictor(text)


def seconds(call: Callable[[], object], calls: int) -> float:
    """Of a call, the median."""
    found = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


@click.command()
@click.option("--model", type=click.Choice(sorted(SIZES)), default="minilm", show_default=True)
@click.option("--tokens", default=28, show_default=True)
@click.option("--blocks", default=30, show_default=True, help="Pairs of blocks at every number of layers.")
@click.option("--calls", default=20, show_default=True, help="Of a block.")
def main(model: str, tokens: int, blocks: int, calls: int) -> None:
    """Microseconds of Python for a call, by the layers it runs, and the line through them."""
    text = text_of(tokens)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        write_random_bundle(bundle, SIZES[model], EnginePlan("ort", "fp32", "layers"))
        with Predictor.load(bundle) as predictor:
            chain = predictor.load_chain()
            systems = {}
            for layers in range(1, chain.num_layers + 1):
                # Every gate fires, so the layers that the chain has are those that run.
                shorter = replace(chain, layers={index: chain.layers[index] for index in range(layers)})
                systems[layers] = partial(call_with, predictor, shorter, text), bare(predictor, text, layers)
            found: dict[int, list[float]] = {layers: [] for layers in systems}
            for _ in range(blocks):
                for layers, (whole, engines) in systems.items():
                    found[layers].append(seconds(whole, calls) - seconds(engines, calls))
    medians = {layers: float(np.median(values)) * 1e6 for layers, values in found.items()}
    for layers, microseconds in medians.items():
        click.echo(f"{layers:3d} layers run: {microseconds:6.0f} us")
    slope, intercept = np.polyfit(list(medians), list(medians.values()), 1)
    click.echo(f"{intercept:.0f} us a call and {slope:.1f} us a layer that runs")


if __name__ == "__main__":
    main()
