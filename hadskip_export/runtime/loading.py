"""A checked bundle and an engine -> programs, and the policy of the bundle's own."""

from collections.abc import Callable, Sequence

from hadskip_export.routing.routes import as_row
from hadskip_export.runtime.engines import Engine, Piece
from hadskip_export.runtime.manifest import (
    ALL_GATES,
    FULL,
    STATES,
    WHOLE,
    WHOLE_ALONE,
    EngineInfo,
    Manifest,
    exit_name,
    gate_name,
    layer_name,
)
from hadskip_export.runtime.policies import POLICIES, Policy
from hadskip_export.runtime.programs.base import Program
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.programs.exits import Exits
from hadskip_export.runtime.programs.full import Full
from hadskip_export.runtime.programs.gated_exits import GatedExits
from hadskip_export.runtime.programs.upfront import Upfront
from hadskip_export.runtime.programs.whole import Whole

Load = Callable[[Engine, EngineInfo, Manifest], Program]
Pieces = Chain | Upfront | Exits  # programs whose control flow is here


def load_gates(engine: Engine, info: EngineInfo, manifest: Manifest) -> Pieces:
    """Every layer and every gate or exit, one by one."""
    if manifest.router.has_exits:
        return _exits(engine, manifest)
    asked = manifest.router.asks_gates
    gates = [engine.load(gate_name(index)) for index in range(manifest.model.layers)] if asked else []
    return _upfront(engine, manifest, gates) if manifest.router.asks_once else _chain(engine, manifest, gates=gates)


def load_layers(engine: Engine, info: EngineInfo, manifest: Manifest) -> Pieces:
    """Layers that answer for the gates after them, or one piece that does, or for their exits."""
    if manifest.router.has_exits:
        return _exits(engine, manifest)
    gates = engine.load(ALL_GATES) if manifest.router.asks_gates else None
    if gates is not None and manifest.router.asks_once:
        return _upfront(engine, manifest, [gates])
    return _chain(engine, manifest, all_gates=gates)


def _chain(engine: Engine, manifest: Manifest, *, gates: Sequence[Piece] = (), all_gates: Piece | None = None) -> Chain:
    return Chain(
        embeddings=engine.load("embeddings"),
        layers={index: engine.load(layer_name(index)) for index in manifest.reachable_layers},
        gates=gates,
        all_gates=all_gates,
        head=engine.load("head"),
        embedding_inputs=manifest.model.embedding_inputs,
        num_layers=manifest.model.layers,
        head_takes_mask=manifest.model.pooling == "mean",
    )


def _upfront(engine: Engine, manifest: Manifest, gates: Sequence[Piece]) -> Upfront:
    return Upfront(
        embeddings=engine.load("embeddings"),
        gates=gates,
        layers={index: engine.load(layer_name(index)) for index in range(manifest.model.layers)},
        head=engine.load("head"),
        embedding_inputs=manifest.model.embedding_inputs,
        head_takes_mask=manifest.model.pooling == "mean",
    )


def _exits(engine: Engine, manifest: Manifest) -> Exits:
    model, router = manifest.model, manifest.router
    made = Exits(
        embeddings=engine.load("embeddings"),
        layers={index: engine.load(layer_name(index)) for index in range(model.layers)},
        exits=[*(engine.load(exit_name(index)) for index in range(model.layers - 1)), engine.load("head")],
        criterion=router.leaves_by,
        embedding_inputs=model.embedding_inputs,
        exits_take_mask=[*(router.exit_inputs == STATES for _ in range(model.layers - 1)), model.pooling == "mean"],
        num_labels=len(model.labels),
    )
    if not router.jumps_to_exits:
        return made
    return GatedExits(**vars(made), gates=[engine.load(gate_name(index)) for index in range(1, model.layers)])


def load_whole(engine: Engine, info: EngineInfo, manifest: Manifest) -> Whole:
    alone = engine.load(WHOLE_ALONE) if WHOLE_ALONE in info.files else None
    return Whole(engine.load(WHOLE), alone, manifest.model.inputs, manifest.model.layers)


def load_full(engine: Engine, info: EngineInfo, manifest: Manifest) -> Full:
    return Full(engine.load(FULL), manifest.model.inputs, manifest.model.layers)


def policy_of(manifest: Manifest, thresholds: Sequence[float]) -> Policy:
    """The bundle's own policy, its gates at these thresholds, [L]."""
    route = [] if manifest.router.route is None else as_row(manifest.router.route, manifest.model.layers).tolist()
    return POLICIES[manifest.router.kind](thresholds, route)


GATED: dict[str, Load] = {"gates": load_gates, "layers": load_layers, "whole": load_whole}
CHAINS: dict[str, Callable[[Engine, EngineInfo, Manifest], Pieces]] = {
    "gates": load_gates,
    "layers": load_layers,
    "whole": load_gates,  # for measurements: what the pieces of a whole model cost one by one
}
