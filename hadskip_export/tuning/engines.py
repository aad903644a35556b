"""Which engines are worth a trial on this machine."""

from collections.abc import Mapping, Sequence

from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime.engines import PRECISIONS
from hadskip_export.support.errors import EngineError

MOST = 4
FP32 = PRECISIONS[0]
WORTH_WHILE = 1.1  # times as fast as the best in fp32


def worth_trying(layer_ms: Mapping[str, float]) -> list[EnginePlan]:
    """The fastest in fp32, and what is clearly faster than it, four in all; fp32 first, for it loses nothing by that.

    Args:
        layer_ms: of a layer, by `engine-precision`; see `doctor`.

    Raises:
        EngineError: none in fp32 was measured.
    """
    plain = min((name for name in layer_ms if name.endswith(f"-{FP32}")), key=layer_ms.__getitem__, default=None)
    if plain is None:
        raise EngineError("no engine could be measured in fp32 here; hadskip-export doctor says what is missing")
    faster = [name for name in layer_ms if layer_ms[plain] > WORTH_WHILE * layer_ms[name]]
    return plans_of([plain, *sorted(faster, key=layer_ms.__getitem__)[: MOST - 1]])


def plans_of(names: Sequence[str]) -> list[EnginePlan]:
    """Of engines by name, as `ort-int8`.

    Raises:
        EngineError: no name of an engine, one that this machine cannot run, or one twice.
    """
    plans = []
    for name in names:
        plan = EnginePlan.tagged("--engine", name).check_measurable()
        if plan in plans:
            raise EngineError(f"--engine {name}: given twice")
        plans.append(plan)
    return plans
