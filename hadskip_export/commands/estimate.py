"""`estimate`: the speedup this machine would give, before anyone trains: random weights, forced routes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hadskip_export.benchmark.measure import Contest, Figures, Workload
from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle
from hadskip_export.exporters.amend import add_engine
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.modeling.checkpoint import read_config, resolve_model
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.exits import ExitClassifier, ExitKind, Student
from hadskip_export.modeling.families import FAMILIES
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route, as_row
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.manifest import RouterInfo
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.environment import busy_share, environment
from hadskip_export.support.errors import BudgetError, DataError, EngineError
from hadskip_export.support.files import scratch
from hadskip_export.support.progress import say
from hadskip_export.support.seeds import check_seed
from hadskip_export.support.values import several
from hadskip_export.support.words import counted
from hadskip_export.trainers.methods import HADSKIP, create_method
from hadskip_export.trainers.methods.early_exit import EarlyExit
from hadskip_export.trainers.methods.upfront import Upfront
from hadskip_export.trainers.recipe import load_recipe

Routing = Literal["same", "mixed"]
CALLS, FEWEST_CALLS, TURNS = 20, 5, 6
LABELS = ("negative", "positive")


BASE = EncoderConfig(
    vocab_size=30522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    type_vocab_size=2,
    labels=LABELS,
)


def _of_family(name: str, **sizes: Any) -> EncoderConfig:
    return replace(BASE, family=name, **FAMILIES[name].values, **sizes)


SIZES = {
    "bert-base": BASE,
    "bert-large": replace(BASE, hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
    "minilm": replace(BASE, hidden_size=384, num_layers=6, intermediate_size=1536),
    "roberta-base": _of_family(
        "roberta", vocab_size=50265, max_positions=514, type_vocab_size=1, layer_norm_eps=1e-5, padding_id=1
    ),
    "modernbert-base": _of_family(
        "modernbert",
        vocab_size=50368,
        num_layers=22,
        intermediate_size=1152,
        max_positions=8192,
        layer_norm_eps=1e-5,
        dropout=0.0,
        attention_dropout=0.0,
        embedding_dropout=0.0,
        attention_output_dropout=0.0,
        head_dropout=0.0,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        pooler_bias=False,
        rotary_bases=tuple(10_000.0 if index % 3 else 160_000.0 for index in range(22)),
        windows=tuple(64 if index % 3 else None for index in range(22)),
        pooling="mean",
        head_activation="gelu",
    ),
    "deberta-v3-base": _of_family(
        "deberta-v2",
        vocab_size=128100,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        absolute_positions=False,
        distance_buckets=256,
        most_distance=512,
        head_activation="gelu",
    ),
    "distilbert": _of_family("distilbert", num_layers=6, head_dropout=0.2),
}


@dataclass(frozen=True)
class Estimate:
    """What `estimate` measured, a row per workload, and the machine that it measured on."""

    environment: dict[str, Any]
    rows: tuple[Figures, ...]


def estimate(
    model: str | Path,
    *,
    layers_run: float,
    method: str = HADSKIP,
    engine: str = "ort",
    precision: str = "fp32",
    cut: Cut | None = None,
    seq: Sequence[int] = (64, 128),
    batch: Sequence[int] = (1,),
    routing: Sequence[Routing] = (),
    against: str | None = None,
    seed: int = 0,
) -> Estimate:
    """Times a model of random weights whose gates, or exits, are all computed and then overruled.

    Args:
        model: `bert-base`, `bert-large`, `minilm`, a model folder, its config.json, or a name on the hub.
        layers_run: layers that each input runs; below 1 a share of them.
        method: `hadskip`, or a rival (`train --method`): one with exits, or one of a fixed route, which is the same for
            all and costs nothing to decide.
        cut: how finely the model is cut, `gates`, `layers` or `whole`; the engine's fastest if left out.
        seq: tokens per input; a row for each.
        batch: inputs per call; a row for each.
        routing: `same`: all inputs run the same layers, evenly spread, the last one among them, as trained gates have
            it (docs/benchmarks.md); `mixed`: each its own, drawn at random. Left out: `same` at batch 1, else both.
            With exits, `same` are the first layers, and `mixed` as many as each input's own, so many on average; where
            gates skip layers on the way, the first one and others as above.
        against: the engine of full BERT, as `ort-fp32`; the same as the layers' if left out. With another one there is
            no efficiency: what the engine gains and what skipping gains are one figure.
        seed: of the routes.

    Raises:
        BudgetError: `layers_run` is not a number of layers that the model has.
        BundleError: no such model, or one that is not supported.
        DataError: a length that the model does not take, or a batch below 1.
        EngineError: an engine or precision that is not to be had, or that gives wrong answers here.
        RecipeError: a seed that is none.
    """
    check_seed(seed)
    before, busy = environment(), busy_share()
    config = find_config(model)
    count = resolve_layers_run(layers_run, config.num_layers)
    _check_workloads(config, seq, batch, routing)
    structure = _Structure.of(method, count, config)
    plan = EnginePlan.of(engine, precision, cut, structure.router).check_measurable()
    other = None
    if against is not None and against != plan.tag:
        other = EnginePlan.tagged("--against", against, "gates").check_measurable()
    if structure.is_fixed and "mixed" in routing:
        raise DataError(f"--routing mixed: with --method {method} all inputs run the same layers; leave it out")
    kinds = [
        (length, size, kind)
        for length in seq
        for size in batch
        for kind in routing or (("same",) if size == 1 or structure.is_fixed else ("same", "mixed"))
    ]
    draw = structure.draw_routes
    lengths, routes, workloads = _draw(kinds, config.num_layers, count, draw, seed)
    texts: list[Text] = [text_of(length) for length in lengths.tolist()]
    with scratch() as temporary:
        bundle = temporary / "bundle"
        say(f"exporting random pieces of {counted(config.num_layers, 'layer')} of {config.hidden_size}")
        report = write_random_bundle(bundle, config, plan, structure.make)
        if report.parity != "passed":
            raise EngineError(
                f"{engine}-{precision} gives wrong answers on this machine, first at {report.first_bad_piece}: its"
                " speed is worth nothing"
            )
        added = None if other is None else add_engine(bundle, other)
        if added is not None and added.parity != "passed":
            raise EngineError(f"--against {against}: gives wrong answers on this machine; its speed is worth nothing")
        opened = read_bundle(bundle)
        forced = None if structure.is_fixed else routes
        with Contest(opened, opened.engine(), texts, routes=forced, full=opened.engine(against), busy=busy) as contest:
            rows = tuple(contest.measure(workload, TURNS) for workload in workloads)
    return Estimate(before | {"load_after": environment()["load"]}, rows)


def _check_workloads(config: EncoderConfig, seq: Sequence[int], batch: Sequence[int], routing: Sequence[str]) -> None:
    """
    Raises:
        DataError: a length that the model does not take, a batch below 1, or no such routing.
    """
    seq, batch, routing = several("seq", seq), several("batch", batch), several("routing", routing)
    for length in seq:
        if not 3 <= length <= config.most_tokens:
            raise DataError(f"--seq {length}: the model takes 3 to {config.most_tokens} tokens")
    if any(size < 1 for size in batch):
        raise DataError("--batch: expected at least 1")
    for kind in routing:
        if kind not in get_args(Routing):
            raise DataError(f"--routing {kind}: expected {' or '.join(get_args(Routing))}")


@dataclass(frozen=True)
class _Structure:
    """What of a method is there before it is trained: what stands beside the layers, and which routes there are.

    Args:
        kind, criterion: of exits, see `ExitClassifier`; None of gates and of a fixed route.
        jumps: see `EarlyExit`.
        route: for all inputs; None where each has its own.
        upfront: see `GatedClassifier`.
    """

    kind: ExitKind | None = None
    criterion: str = ""
    jumps: bool = False
    route: Route | None = None
    upfront: bool = False

    @classmethod
    def of(cls, method: str, layers_run: int, config: EncoderConfig) -> "_Structure":
        """
        Raises:
            RecipeError: no such method, or one that the model is too small for.
        """
        recipe = load_recipe()
        made = create_method(method, recipe, {})
        made.check(recipe, layers_run, config)
        if isinstance(made, EarlyExit):
            return cls(made.kind, made.criterion, made.jumps)
        route = None if made.fits_threshold else tuple(range(1, layers_run + 1))
        return cls(route=route, upfront=isinstance(made, Upfront))

    @property
    def router(self) -> RouterInfo:
        if self.kind is not None:
            return RouterInfo("gated-exits" if self.jumps else "exits", criterion=self.criterion)
        return RouterInfo("static" if self.is_fixed else "upfront" if self.upfront else "gates")

    @property
    def is_fixed(self) -> bool:
        return self.route is not None

    def make(self, body: Classifier) -> Student:
        if self.kind is not None:
            return ExitClassifier(body, self.kind, self.criterion, load_recipe().gate_width, self.jumps)
        return GatedClassifier(body, fixed_route=self.route, upfront=self.upfront)

    def draw_routes(
        self, rows: int, num_layers: int, layers_run: int, routing: Routing, random: np.random.Generator
    ) -> np.ndarray:
        """As the function of that name has them, of gates."""
        if self.jumps:
            return draw_jumps(rows, num_layers, layers_run, routing, random)
        if self.kind is not None:
            return draw_prefixes(rows, num_layers, layers_run, routing, random)
        if self.route is not None:
            return np.tile(as_row(self.route, num_layers), (rows, 1))
        return draw_routes(rows, num_layers, layers_run, routing, random)


Draw = Callable[[int, int, int, Routing, np.random.Generator], np.ndarray]


def _draw(
    kinds: Sequence[tuple[int, int, Routing]], num_layers: int, layers_run: int, draw: Draw, seed: int
) -> tuple[np.ndarray, np.ndarray, list[Workload]]:
    """Texts of its own for each workload of (length, batch size, routing): tokens of each text, int [texts], the layers
    that each runs, bool [texts, L], and the workloads."""
    random = np.random.default_rng(seed)
    counts = [size * max(FEWEST_CALLS, CALLS // size) for _, size, _ in kinds]
    lengths = np.repeat([length for length, _, _ in kinds], counts)
    drawn = [
        draw(count, num_layers, layers_run, kind, random) for count, (_, _, kind) in zip(counts, kinds, strict=True)
    ]
    routes = np.concatenate(drawn)
    rows = np.split(np.arange(len(lengths)), np.cumsum(counts)[:-1])
    workloads = [
        Workload(list(mine.reshape(-1, size)), lengths, routes, kind, f"{length} tokens, batch {size}, {kind} layers")
        for mine, (length, size, kind) in zip(rows, kinds, strict=True)
    ]
    return lengths, routes, workloads


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


def draw_jumps(
    rows: int, num_layers: int, layers_run: int, routing: Routing, random: np.random.Generator
) -> np.ndarray:
    """As `draw_routes`, the first layer always among them."""
    found = np.eye(1, num_layers, dtype=bool).repeat(rows, axis=0)
    if layers_run > 1:
        found[:, 1:] = draw_routes(rows, num_layers - 1, layers_run - 1, routing, random)
    return found


def draw_prefixes(
    rows: int, num_layers: int, layers_run: int, routing: Routing, random: np.random.Generator
) -> np.ndarray:
    """bool [rows, num_layers], the first layers of every row: `layers_run` of them or, `mixed`, in pairs as many more
    of the one row as fewer of the other."""
    leaves = np.full(rows, layers_run)
    if routing == "mixed":
        most = min(layers_run - 1, num_layers - layers_run)
        off = random.integers(0, most + 1, rows // 2)
        leaves[: len(off) * 2] += np.concatenate((off, -off))
        leaves = random.permutation(leaves)
    return np.arange(num_layers) < leaves[:, None]
