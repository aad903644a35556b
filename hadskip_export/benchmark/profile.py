"""Where the time of a call goes: tokeniser, embeddings, each layer, gates, head, and the Python between them."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hadskip_export.runtime.bundle import layer_name
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Input


def profile(predictor: Predictor, calls: Sequence[list[Input]]) -> dict[str, float]:
    """Times the parts of the Predictor's own calls; it is left as it was.

    Args:
        calls: the inputs of each call; the first is made once more before, to warm up.

    Returns:
        Mean seconds per call: `tokeniser`, `guess` or `graph` if there is one, `embeddings`, `layer_01`.., `gates`,
        `head`, and `python`, which is all the rest. A layer that only some calls run counts with what it costs on
        average. Of a static route only the layers on it, and no gates. Fused gates count with their layer; the
        look-ahead after the embeddings is `gates`.
    """
    chain, single, tokenizer = predictor.chain, predictor.single, predictor.tokenizer
    assert chain is not None
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[part] += time.perf_counter() - started
            return result

        return call

    names = {index: layer_name(index) for index in chain.layers}
    predictor.tokenizer = _Tokenizer(timed("tokeniser", tokenizer.encode))  # type: ignore[assignment]
    alone = predictor.engine_info.single
    predictor.single = None if single is None else timed(alone, single)
    predictor.chain = replace(
        chain,
        embeddings=timed("embeddings", chain.embeddings),
        layers={index: timed(names[index], layer) for index, layer in chain.layers.items()},
        gates=[timed("gates", gate) for gate in chain.gates],
        lookahead=None if chain.lookahead is None else timed("gates", chain.lookahead),
        head=timed("head", chain.head),
    )
    try:
        predictor(calls[0], batch_size=len(calls[0]))
        spent.clear()
        total = 0.0
        for inputs in calls:
            started = time.perf_counter()
            predictor(inputs if len(inputs) > 1 else inputs[0], batch_size=len(inputs))
            total += time.perf_counter() - started
    finally:
        predictor.chain, predictor.single, predictor.tokenizer = chain, single, tokenizer
    gates = ["gates"] if chain.gates or chain.lookahead else []
    timed_parts = ["tokeniser", *([] if single is None else [alone]), "embeddings", *names.values(), *gates, "head"]
    parts = {part: spent[part] / len(calls) for part in timed_parts}
    return parts | {"python": total / len(calls) - sum(parts.values())}


class _Tokenizer:
    """Only what a call asks of a tokenizer."""

    def __init__(self, encode: Callable[..., Any]):
        self.encode = encode
