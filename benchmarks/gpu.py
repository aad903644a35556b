"""Skipping on a GPU: one input, and a batch whose inputs take routes of their own, beside the fastest full BERT found.

Random weights of BERT-base size, made on the spot; the engine is checked against PyTorch in fp32 on the CPU, and
against the ONNX pieces, before anything is timed. All systems in one process, in turns; wall clock from ids to logits
on the host, and the device's own time by CUDA events. Two tables, each as soon as it is there. Under eight minutes, no
network.

    make bench-gpu
    python benchmarks/gpu.py --precision bf16 --tokens 64
"""

import importlib
import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from hadskip_export.benchmark.random_bundle import write_random_bundle
from hadskip_export.commands.estimate import SIZES, draw_routes
from hadskip_export.exporters.amend import add_engine
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import Cut, engine_class
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.support.errors import EngineError, first_line

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WORD, ROWS, GROWTH_CALLS = 4, 32, 10_000
CUTS: tuple[Cut, ...] = ("layers", "whole")  # piece by piece, and with layers ahead of the gates
EAGER, COMPILED, ORT = "full BERT, torch eager", "full BERT, torch.compile", "ort-cuda"
Call = Callable[[], object]


class Turns:
    """Milliseconds of each system's calls, in turns: medians of blocks, by wall clock and by the device."""

    def __init__(self, systems: dict[str, Call], on_gpu: bool, calls: int, blocks: int):
        self.wall: dict[str, list[float]] = {name: [] for name in systems}
        self.device: dict[str, list[float]] = {name: [] for name in systems}
        for call in systems.values():
            for _ in range(3):
                call()
        for _ in range(blocks):
            for name, call in systems.items():
                self.wall[name].append(float(np.median([self._by_wall(call) for _ in range(calls)])))
                if on_gpu and ORT not in name:  # which has a stream of its own
                    on_device = [self._by_device(call, stream_of(name)) for _ in range(calls)]
                    self.device[name].append(float(np.median(on_device)))

    @staticmethod
    def _by_wall(call: Call) -> float:
        started = time.perf_counter()
        call()  # which gives its answer on the host
        return (time.perf_counter() - started) * 1e3

    @staticmethod
    def _by_device(call: Call, stream: torch.cuda.Stream | None) -> float:
        """From the first work of a call on the device to the last, waits between them included."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record(stream)
        call()
        last.record(stream)
        torch.cuda.synchronize()
        return first.elapsed_time(last)

    def table(self, ideal: float) -> str:
        """A line for each system; speedups over the fastest full BERT, the median of the ratios block by block."""
        full = [name for name in self.wall if name.startswith("full")]
        fastest = min(full, key=lambda name: float(np.median(self.wall[name])))
        base = np.array(self.wall[fastest])
        lines = [f"{'':<38} {'wall ms':>8} {'device ms':>9} {'speedup':>8} {'of ideal':>8}   (over {fastest})"]
        for name, wall in self.wall.items():
            ratio = float(np.median(base / np.array(wall)))
            share = "" if name in full else f"{ratio / ideal:8.1%}"
            device = f"{np.median(self.device[name]):9.3f}" if self.device[name] else f"{'':9}"
            lines.append(f"{name:<38} {np.median(wall):8.3f} {device} {ratio:8.2f} {share}")
        return "\n".join(lines)


def stream_of(name: str) -> torch.cuda.Stream | None:
    """Where a system's work happens: the engine's own stream, or the current one of plain torch."""
    if not torch.cuda.is_available() or name in (EAGER, COMPILED):
        return None
    return importlib.import_module("hadskip_export.runtime.engines.torch_cuda.graphs").own_stream()


def torch_systems(rows: int, tokens: int, model: str, dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Full BERT as anybody would run it with PyTorch alone, answers on the host."""
    torch.manual_seed(0)
    full = Classifier(SIZES[model]).init_weights().eval().to(device, dtype)
    sent = torch.full((rows, tokens), WORD), torch.ones(rows, tokens, dtype=torch.int64)

    def call(forward: Callable[..., object]) -> Call:
        def run() -> object:
            ids, mask = (one.to(device) for one in sent)
            with torch.inference_mode():
                return forward(ids, mask, torch.zeros_like(ids)).logits.cpu()

        return run

    systems = {EAGER: call(full)}
    if device == "cuda":
        compiled = call(torch.compile(full, mode="reduce-overhead"))
        try:
            compiled()
            systems[COMPILED] = compiled
        except Exception as error:  # its compilers raise whatever they like; the others still count
            click.echo(f"torch.compile: {first_line(error)}")
    return systems


@click.command()
@click.option("--engine", default="torch-cuda", show_default=True)
@click.option("--precision", type=click.Choice(sorted(DTYPES)), default="fp16", show_default=True)
@click.option("--model", type=click.Choice(sorted(SIZES)), default="bert-base", show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--layers", default=6, show_default=True, help="How many run.")
@click.option("--calls", default=50, show_default=True, help="Of a block.")
@click.option("--blocks", default=12, show_default=True)
@click.option("--growth-calls", default=GROWTH_CALLS, show_default=True)
def main(
    engine: str, precision: str, model: str, tokens: int, layers: int, calls: int, blocks: int, growth_calls: int
) -> None:
    """Time skipping on a GPU beside the fastest full BERT."""
    kind = engine_class(engine)
    if lack := kind.why_not_here():
        raise SystemExit(f"{engine}: {lack}")
    config, on_gpu = SIZES[model], torch.cuda.is_available()
    if not 0 < layers < config.num_layers:
        raise click.BadParameter(
            f"{model} has {config.num_layers} layers; some of them must be skipped", param_hint="--layers"
        )
    device, started = "cuda" if on_gpu else "cpu", time.time()
    one = [_words(tokens)]
    mixed = draw_routes(ROWS, config.num_layers, layers, "mixed", np.random.default_rng(0))
    name = torch.cuda.get_device_name() if on_gpu else "no GPU: these figures mean nothing"
    click.echo(f"{model}, {engine}-{precision}, torch {torch.__version__}, {name}")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        bundle = Path(temporary) / "bundle"
        write_random_bundle(bundle, config, EnginePlan(engine, precision, CUTS[0]))
        add_engine(bundle, EnginePlan(engine, precision, CUTS[1]))
        predictors = cuts_of(bundle, engine, opened)
        whole, chain = predictors["whole"], predictors["layers"]
        ort = ort_predictors(bundle, opened) if precision == "fp16" else {}
        route = draw_routes(1, config.num_layers, layers, "same", np.random.default_rng(0))
        # The engine guesses that a call begins as the last one did.
        other = route.copy()
        other[0, route.argmax() - 1], other[0, route.argmax()] = True, False
        beginnings = itertools.cycle([other, route])
        systems: dict[str, Call] = {
            "skipping, layers ahead of gates": partial(whole.run, one, routes=route),
            "the same, a guess wrong": lambda: whole.run(one, routes=next(beginnings)),
            "skipping, piece by piece": partial(chain.run, one, routes=route),
            f"full BERT, {engine}": lambda: whole.run(one, router="full"),
        }
        systems |= torch_systems(1, tokens, model, DTYPES[precision], device)
        systems |= ort_systems(ort, one, route)
        ideal = ideal_speedup(whole, one, layers, calls, on_gpu)
        click.echo(f"one input of {tokens} tokens, {layers} of {config.num_layers} layers; ideal {ideal:.2f}")
        click.echo(Turns(systems, on_gpu, calls, blocks).table(ideal))
        systems = {
            "skipping, layers ahead of gates": lambda: whole.run(one * ROWS, routes=mixed),
            "skipping, piece by piece": lambda: chain.run(one * ROWS, routes=mixed),
            f"full BERT, {engine}": lambda: whole.run(one * ROWS, router="full"),
        }
        systems |= torch_systems(ROWS, tokens, model, DTYPES[precision], device)
        systems |= ort_systems(ort, one * ROWS, mixed)
        click.echo(f"a batch of {ROWS} of {tokens} tokens, each its own {layers} layers")
        click.echo(Turns(systems, on_gpu, max(1, calls // 5), blocks).table(config.num_layers / layers))
        click.echo(growth(whole, config.max_positions, growth_calls, on_gpu))
    click.echo(f"{time.time() - started:.0f} s")


def _words(tokens: int) -> Encoded:
    return Encoded(np.full(tokens, WORD), np.zeros(tokens, np.int64), False)


def ideal_speedup(whole: Predictor, one: list[Encoded], layers: int, calls: int, on_gpu: bool) -> float:
    """What the layers left out would save if nothing else cost anything: a layer's time is the slope of calls with few,
    some and all layers, the last among them as in most trained routes; what is outside of them is the rest."""
    total = whole.bundle.manifest.model.layers
    counts = sorted({max(1, total // 6), total // 2, total})
    routes = [draw_routes(1, total, count, "same", np.random.default_rng(0)) for count in counts]
    systems: dict[str, Call] = {str(route.sum()): partial(whole.run, one, routes=route) for route in routes}
    turns = Turns(systems, on_gpu, calls, 5)
    layer, outside = np.polyfit(counts, [float(np.median(wall)) for wall in turns.wall.values()], 1)
    return float((outside + total * layer) / (outside + layers * layer))


def cuts_of(bundle: Path, engine: str, opened: ExitStack) -> dict[str, Predictor]:
    """The engine's Predictors by cut."""
    predictors = {}
    for cut in CUTS:
        predictors[cut] = opened.enter_context(Predictor.load(bundle, engine=engine, cut=cut))
        info = predictors[cut].engine_info
        click.echo(f"{info.name}: parity {info.parity}")
    return predictors


def ort_predictors(bundle: Path, opened: ExitStack) -> dict[str, Predictor]:
    """The same model in ONNX Runtime on the GPU, where there is one for it, by cut."""
    try:
        if engine_class(ORT).why_not_here() is not None:
            return {}
        for cut in CUTS:
            add_engine(bundle, EnginePlan(ORT, "fp16", cut))
        return cuts_of(bundle, ORT, opened)
    except EngineError as error:
        click.echo(f"{ORT}: {error}")
        return {}


def ort_systems(predictors: dict[str, Predictor], inputs: list[Encoded], routes: np.ndarray) -> dict[str, Call]:
    """Skipping and full BERT by these predictors, if there are any."""
    if not predictors:
        return {}
    chain, whole = predictors["layers"], predictors["whole"]
    return {
        f"skipping, {ORT} fp16, whole": lambda: whole.run(inputs, routes=routes),
        f"skipping, {ORT} fp16, piece by piece": lambda: chain.run(inputs, routes=routes),
        f"full BERT, {ORT} fp16": lambda: chain.run(inputs, router="full"),
    }


def growth(predictor: Predictor, longest: int, calls: int, on_gpu: bool) -> str:
    """Device memory after so many calls of all lengths, and after as many again: in the first some program is still
    recorded that a length and a route need."""

    def used() -> int:
        return 0 if not on_gpu else torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]

    def call(length: int) -> None:
        predictor.run([_words(length)])

    for length in range(16, longest + 1, 16):
        call(length)
    grown = []
    for _ in range(2):
        before, random = used(), np.random.default_rng(0)
        for length in random.integers(3, longest + 1, calls).tolist():
            call(length)
        grown.append(f"{(used() - before) / 1e6:+.1f} MB")
    return f"device memory after {calls} calls of 3 to {longest} tokens: {grown[0]}, after as many again: {grown[1]}"


if __name__ == "__main__":
    main()
