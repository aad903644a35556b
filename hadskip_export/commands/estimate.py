"""`estimate`: the speedup this machine would give, before anyone trains: random weights, forced gates."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hadskip_export.benchmark.measure import Contest, Figures
from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.exporters.amend import add_engine
from hadskip_export.exporters.compile import check_measurable
from hadskip_export.modeling.checkpoint import read_config, resolve_model
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.runtime.engines import GateLayout, Single
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.environment import busy_share, environment
from hadskip_export.support.errors import BudgetError, DataError, EngineError
from hadskip_export.support.progress import say

Routing = Literal["same", "mixed"]
CALLS, FEWEST_CALLS, TURNS = 20, 5, 6
LABELS = ("negative", "positive")
BATCHES = {"chain": "the chain", "graph": "the graph", "rows": "one of their own"}


def _bert(hidden_size: int, num_layers: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=30522,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_positions=512,
        type_vocab_size=2,
        labels=LABELS,
    )


SIZES = {"bert-base": _bert(768, 12, 12), "bert-large": _bert(1024, 24, 16), "minilm": _bert(384, 6, 12)}


def estimate(
    model: str | Path,
    *,
    layers_run: float,
    engine: str = "ort",
    precision: str = "fp32",
    seq: Sequence[int] = (64, 128),
    batch: Sequence[int] = (1,),
    routing: Sequence[Routing] = (),
    gates: GateLayout | None = None,
    single: Single | None = None,
    against: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Times a model of random weights whose gates are all computed and then overruled.

    Args:
        model: `bert-base`, `bert-large`, `minilm`, a model folder, its config.json, or a name on the hub.
        layers_run: layers that each input runs; below 1 a share of them.
        seq: tokens per input; a row for each.
        batch: inputs per call; a row for each.
        routing: `same`: all inputs run the same layers, evenly spread, the last one among them, as trained gates have
            it (docs/benchmarking.md); `mixed`: each its own, drawn at random. Left out: `same` at batch 1, else both.
        gates: their layout in the chain, which then runs single inputs too unless `single` says otherwise.
        single: how an input that comes alone is run, `chain` or `graph`; the engine's own way if left out.
        against: the engine of full BERT, as `ort-fp32`; the same as the layers' if left out. With another one there is
            no efficiency: what the engine gains and what skipping gains are one figure.
        seed: of the routes.

    Returns:
        `{"environment": {...}, "rows": [Figures, ...]}` as `--json` writes it.

    Raises:
        BudgetError: `layers_run` is not a number of layers that the model has.
        BundleError: no such model, or one that is not supported.
        DataError: a length that the model does not take, or a batch below 1.
        EngineError: an engine or precision that is not to be had, or that gives wrong answers here.
    """
    before, busy = environment(), busy_share()
    config = find_config(model)
    count = resolve_layers_run(layers_run, config.num_layers)
    for length in seq:
        if not 3 <= length <= config.max_positions:
            raise DataError(f"--seq {length}: the model takes 3 to {config.max_positions} tokens")
    if any(size < 1 for size in batch):
        raise DataError("--batch: expected at least 1")
    for kind in routing:
        if kind not in get_args(Routing):
            raise DataError(f"--routing {kind}: expected {' or '.join(get_args(Routing))}")
    other = None if against in (None, f"{engine}-{precision}") else _parse(against)
    workloads = [
        (length, size, kind)
        for length in seq
        for size in batch
        for kind in routing or (("same",) if size == 1 else ("same", "mixed"))
    ]
    texts: list[Text] = []
    routes, calls = [], []
    random = np.random.default_rng(seed)
    for length, size, kind in workloads:
        rows = np.arange(size * max(FEWEST_CALLS, CALLS // size)) + len(texts)
        calls.append(list(rows.reshape(-1, size)))
        texts += [text_of(length)] * len(rows)
        routes.append(draw_routes(len(rows), config.num_layers, count, kind, random))
    all_routes = np.concatenate(routes)
    lengths = np.concatenate([np.full(len(r), w[0]) for r, w in zip(routes, workloads, strict=True)])
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        say(f"exporting random pieces of {config.num_layers} layers of {config.hidden_size}")
        way = "chain" if gates is not None and single is None else single
        report = write_random_bundle(bundle, config, engine, precision, gates, way)
        if report.parity != "passed":
            raise EngineError(
                f"{engine}-{precision} gives wrong answers on this machine, first at {report.first_bad_piece}: its"
                " speed is worth nothing"
            )
        added = None if other is None else add_engine(bundle, *other, single="chain")
        if added is not None and added.parity != "passed":
            raise EngineError(f"--against {against}: gives wrong answers on this machine; its speed is worth nothing")
        opened = read_bundle(bundle)
        rows_out: list[Figures] = []
        info, full = opened.engine(), opened.engine(against)
        with Contest(str(bundle), info, opened.manifest, texts, routes=all_routes, full=full) as contest:
            for (length, size, kind), workload in zip(workloads, calls, strict=True):
                label = f"{length} tokens, batch {size}, {kind} layers"
                rows_out.append(contest.measure(workload, lengths, all_routes, kind, label, busy, turns=TURNS))
    after = {"load_after": environment()["load"]}
    return {"environment": before | after, "rows": [asdict(row) for row in rows_out]}


def _parse(against: str) -> tuple[str, str]:
    engine, dash, precision = against.rpartition("-")
    if not dash:
        raise EngineError(f"--against {against}: expected an engine and its precision, as ort-fp32")
    check_measurable(engine, precision)
    return engine, precision


def find_config(model: str | Path) -> EncoderConfig:
    """The sizes of a named model, a config file, a model folder or a model on the hub; see `estimate`."""
    if str(model) in SIZES:
        return SIZES[str(model)]
    path = Path(model)
    return read_config(path if path.is_file() else resolve_model(model), LABELS)


def resolve_layers_run(layers_run: float, num_layers: int) -> int:
    """`--layers-run` as a number of layers: below 1 it is a share of them.

    Raises:
        BudgetError: not a whole number of the layers that the model has.
    """
    layers = layers_run * num_layers if layers_run < 1 else layers_run
    if not 0.5 < layers <= num_layers or abs(layers - round(layers)) > 1e-6:  # also refuses NaN
        raise BudgetError(f"--layers-run {layers_run:g}: expected a whole number of the model's {num_layers} layers")
    return round(layers)


def draw_routes(
    rows: int, num_layers: int, layers_run: int, routing: Routing, random: np.random.Generator
) -> np.ndarray:
    """bool [rows, num_layers], `layers_run` of them true in every row."""
    if routing == "same":
        route = np.zeros(num_layers, bool)
        route[num_layers - 1 - np.arange(layers_run) * num_layers // layers_run] = True
        return np.tile(route, (rows, 1))
    return random.permuted(np.tile(np.arange(num_layers) < layers_run, (rows, 1)), axis=1)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The result as a person reads it."""
    first = rows[0]
    lines = [
        f"{first['engine']}-{first['precision']}, random weights,"
        f" {first['layers_run']:g} of {first['layers']} layers run, all gates computed; full BERT in"
        f" {first['full_engine']}; single inputs through the {first['single']}, batches through"
        f" {BATCHES[first['batches']]}",
        f"{'tokens':>6} {'batch':>5} {'layers':>6} {'full p50':>10} {'skip p50':>10} {'skip p99':>10}  "
        f"{'speedup':<20} {'ideal':>5} {'efficiency':>10}",
    ]
    lines += [
        f"{row['seq']:>6.0f} {row['batch']:>5} {row['routing']:>6} {row['full_p50_ms']:>7.2f} ms {row['p50']:>7.2f} ms"
        f" {row['p99']:>7.2f} ms  {row['speedup']:.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
        + ("" if row["ideal"] is None else f"  {row['ideal']:>5.2f} {row['efficiency']:>10.1%}")
        for row in rows
    ]
    lines += [
        f"do not trust {row['seq']:.0f} x {row['batch']}: {warning}" for row in rows for warning in row["warnings"]
    ]
    return lines
