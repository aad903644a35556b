"""Eight threads on one Predictor beside one thread: throughput, and whether the answers are equal.

BERT-base size, random weights, 64 tokens, six of twelve layers forced, each input its own; trials alternate.

    python benchmarks/threads.py                     # ort-fp32, one input a call
    python benchmarks/threads.py openvino-bf16
    python benchmarks/threads.py openvino-bf16 --batch 8
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import click
import numpy as np

from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.commands.estimate import SIZES, draw_routes
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import Cut

THREADS, CALLS, TRIALS, TOKENS, LAYERS_RUN = 8, 64, 5, 64, 6


@click.command()
@click.option("--cut", type=click.Choice(get_args(Cut)), help="The engine's fastest if left out.")
@click.option("--batch", default=1, help="Inputs of a call.")
@click.argument("name", default="ort-fp32")
def main(cut: Cut | None, batch: int, name: str) -> None:
    calls = max(CALLS // batch, 4 * THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        engine, _, precision = name.rpartition("-")
        write_random_bundle(bundle, SIZES["bert-base"], EnginePlan.of(engine, precision, cut))
        with Predictor.load(bundle) as predictor:
            layers = predictor.bundle.manifest.model.layers
            routes = draw_routes(calls * batch, layers, LAYERS_RUN, "mixed", np.random.default_rng(0))
            encoded = predictor.tokenizer.encode([text_of(TOKENS)] * batch)

            def call(number: int) -> np.ndarray:
                return predictor.run(encoded, routes=routes[number * batch : (number + 1) * batch])[0]

            def trial(threads: int) -> tuple[float, np.ndarray]:
                with ThreadPoolExecutor(threads) as pool:
                    started = time.perf_counter()
                    answers = list(pool.map(call, range(calls)))
                    return calls / (time.perf_counter() - started), np.concatenate(answers)

            trial(THREADS)  # as many lanes as there are threads
            ratios, farthest = [], 0.0
            for _ in range(TRIALS):
                (one, expected), (many, got) = trial(1), trial(THREADS)
                ratios.append(many / one)
                farthest = max(farthest, float(np.abs(got - expected).max()))
        trials = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        click.echo(
            f"{name}, batches of {batch}: {THREADS} threads against one, throughput: median"
            f" {statistics.median(ratios):.2f} of {TRIALS} trials ({trials}); answers differ by at most {farthest:.1e}"
        )


if __name__ == "__main__":
    main()
