"""How long an entrant's calls take at each budget, beside full BERT."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hadskip_export.benchmark.statistics import percentiles, speedup
from hadskip_export.benchmark.systems import System, choose_calls, take_turns
from hadskip_export.comparison.figures import Latency
from hadskip_export.runtime.tokenization import Text

CALLS, TURNS = 60, 3


@dataclass(frozen=True)
class Served:
    """A bundle at an operating point. `threshold`: in logits; None of a static route, which has none."""

    bundle: Path
    threshold: float | None


def time_calls(served: Mapping[float, Served], engine: str, texts: Sequence[Text], label: str) -> dict[float, Latency]:
    """By budget, of the same calls, all in turns, each in a process of its own.

    Args:
        served: by budget; full BERT is that of the first bundle.
        engine: the name of it in the bundles.
        texts: some are drawn.
    """
    first = next(iter(served.values())).bundle
    full = System(str(first), {"engine": engine, "router": "full"}, texts)
    systems = {"full": full}
    for budget, one in served.items():
        options = {"engine": engine} | ({} if one.threshold is None else {"gate_threshold": one.threshold})
        systems[str(budget)] = System(str(one.bundle), options, texts)
    calls = choose_calls(len(texts), 1)[:CALLS]
    with ExitStack() as stack:
        for system in systems.values():
            stack.enter_context(system)
        taken = take_turns(systems, calls, TURNS, label).seconds
    found = {}
    for budget in served:
        ratio = speedup(taken["full"], taken[str(budget)])
        own, theirs = (percentiles(taken[name])[0] for name in (str(budget), "full"))
        found[budget] = Latency(engine, own, theirs, ratio.value, ratio.low, ratio.high)
    return found
