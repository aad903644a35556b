"""Where the time of a call goes: tokeniser, embeddings, each layer, gates, head, and the Python between them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Input


def profile(predictor: Predictor, calls: Sequence[list[Input]]) -> dict[str, float]:
    """Times the parts of the Predictor's own calls; it is left as it was.

    Args:
        calls: the inputs of each call; the first is made once more before, to warm up.

    Returns:
        Mean seconds per call: `tokeniser`, the program's own parts (`embeddings`, `layer_01`.., `gates` and `head` of a
        chain, `whole`), and `python`, which is all the rest. A layer that only some calls run counts with what it costs
        on average. Of a static route only the layers on it, and no gates. Gates inside a layer's engine count with it.
    """
    gated, tokenizer = predictor.gated, predictor.tokenizer
    assert gated is not None
    spent: dict[str, float] = {}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        part = "gates" if part.startswith("gate") else part
        spent[part] = 0.0

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[part] += time.perf_counter() - started
            return result

        return call

    predictor.tokenizer = _Tokenizer(timed("tokeniser", tokenizer.encode))  # type: ignore[assignment]
    predictor.gated = gated.wrapped(timed)
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


class _Tokenizer:
    """Only what a call asks of a tokenizer."""

    def __init__(self, encode: Callable[..., Any]):
        self.encode = encode
