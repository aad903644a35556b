"""Where the time of a call goes: tokeniser, embeddings, each layer, gates, head, and the Python between them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hadskip_export.runtime.bundle import layer_name
from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.conditional import Conditional
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.speculation import Speculation
from hadskip_export.runtime.tokenization import Input


def profile(predictor: Predictor, calls: Sequence[list[Input]]) -> dict[str, float]:
    """Times the parts of the Predictor's own calls; it is left as it was.

    Args:
        calls: the inputs of each call; the first is made once more before, to warm up.

    Returns:
        Mean seconds per call: `tokeniser`, `guess` or `graph` and `rows` if there are such, `embeddings`, `layer_01`..,
        `gates`, `head` where some call goes through the chain, and `python`, which is all the rest. A layer that only
        some calls run counts with what it costs on average. Of a static route only the layers on it, and no gates.
        Fused gates count with their layer; the look-ahead after the embeddings is `gates`.
    """
    gated, tokenizer = predictor.gated, predictor.tokenizer
    assert gated is not None
    spent: dict[str, float] = {}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent[part] = 0.0

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[part] += time.perf_counter() - started
            return result

        return call

    predictor.tokenizer = _Tokenizer(timed("tokeniser", tokenizer.encode))  # type: ignore[assignment]
    predictor.gated = _timed(gated, timed)
    try:
        predictor(calls[0], batch_size=len(calls[0]))
        spent |= dict.fromkeys(spent, 0.0)
        total = 0.0
        for inputs in calls:
            started = time.perf_counter()
            predictor(inputs if len(inputs) > 1 else inputs[0], batch_size=len(inputs))
            total += time.perf_counter() - started
    finally:
        predictor.gated, predictor.tokenizer = gated, tokenizer
    parts = {part: seconds / len(calls) for part, seconds in spent.items()}
    return parts | {"python": total / len(calls) - sum(parts.values())}


def _timed(gated: Chain | Speculation | Conditional, timed: Callable[..., Any]) -> Any:
    """The same, each piece wrapped in `timed`, which is given its part of the call, too."""
    if isinstance(gated, Speculation):
        return replace(gated, guess=timed("guess", gated.guess), chain=_timed(gated.chain, timed))
    if isinstance(gated, Conditional):
        graph = batches = timed("graph", gated.graph)
        if isinstance(gated.batches, Chain):
            batches = _timed(gated.batches, timed)
        elif gated.batches is not gated.graph:
            batches = timed("rows", gated.batches)
        return replace(gated, graph=graph, batches=batches)
    return replace(
        gated,
        embeddings=timed("embeddings", gated.embeddings),
        layers={index: timed(layer_name(index), layer) for index, layer in gated.layers.items()},
        gates=[timed("gates", gate) for gate in gated.gates],
        lookahead=None if gated.lookahead is None else timed("gates", gated.lookahead),
        head=timed("head", gated.head),
    )


class _Tokenizer:
    """Only what a call asks of a tokenizer."""

    def __init__(self, encode: Callable[..., Any]):
        self.encode = encode
