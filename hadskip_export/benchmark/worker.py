"""One system in a process of its own, run as `python -P -m hadskip_export.benchmark.worker`.

It reads a JSON line per request from standard input and answers with a line on standard output. Between requests it
does nothing, so idle thread pools of one system do not slow another; the parent hands out turns.
"""

import time
from typing import Any

import numpy as np

from hadskip_export.benchmark.outside.replies import reply_to_requests
from hadskip_export.benchmark.profile import profile
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Input, pad
from hadskip_export.support.errors import HadskipError

Calls = list[list[int]]  # rows of the texts, by call


class Worker:
    """Answers requests for one loaded bundle.

    Args:
        routes: the layers that each text runs whatever its gates say, bool [texts, L]; None leaves it to the gates.
    """

    def __init__(self, bundle: str, options: dict[str, Any], texts: list[Any], routes: list[list[bool]] | None):
        self._predictor = Predictor.load(bundle, **options)
        self._texts: list[Input] = [text if isinstance(text, str) else (text[0], text[1]) for text in texts]
        self._routes = None if routes is None else np.array(routes, bool)

    def calls(self, calls: Calls) -> dict[str, Any]:
        """Timed calls, one after the other, as an application makes them: text in, predictions out."""
        return {"seconds": [self._call(rows) for rows in calls]}

    def _call(self, rows: list[int]) -> float:
        texts = [self._texts[row] for row in rows]
        inputs = texts[0] if len(texts) == 1 else texts
        routes = None if self._routes is None else self._routes[rows]
        started = time.perf_counter()
        self._predictor(inputs, batch_size=len(rows), routes=routes)
        return time.perf_counter() - started

    def pieces(self, calls: Calls, repeats: int) -> dict[str, float | None]:
        """Embeddings, one layer, the last one, which may compute the first token alone, and head timed alone on the
        batches that the calls would make; seconds, medians. None for a layer where there is only the last one."""
        chain = self._predictor.load_chain()
        samples = []
        *before, last = chain.layers.values()
        for rows in calls:
            batch = pad(self._predictor.tokenizer.encode([self._texts[row] for row in rows]))
            inputs = [getattr(batch, name) for name in chain.embedding_inputs]
            for _ in range(repeats):
                moments = [time.perf_counter()]
                hidden = chain.embeddings(*inputs)
                moments.append(time.perf_counter())
                for layer in before:
                    hidden = _hidden(layer(hidden, batch.attention_mask))
                moments.append(time.perf_counter())
                hidden = _hidden(last(hidden, batch.attention_mask))
                moments.append(time.perf_counter())
                chain.logits(hidden, batch.attention_mask)
                moments.append(time.perf_counter())
                samples.append(np.diff(moments))
        embeddings, layers, last_layer, head = np.median(samples, axis=0).tolist()
        each = layers / len(before) if before else None
        return {"embeddings": embeddings, "layer": each, "last_layer": last_layer, "head": head}

    def profile(self, calls: Calls) -> dict[str, Any]:
        """Where the time of a call goes: mean seconds by part."""
        return {"parts": profile(self._predictor, [[self._texts[row] for row in rows] for rows in calls])}

    def answers(self, batch_size: int) -> dict[str, Any]:
        """Logits and route of every text, untimed."""
        encoded = self._predictor.tokenizer.encode(self._texts)
        logits, routes = self._predictor.run(encoded, batch_size, routes=self._routes)
        return {"logits": logits.tolist(), "routes": routes.tolist()}


def _hidden(output: Any) -> np.ndarray:
    """hidden_states of a piece, which may have margins too."""
    return output[0] if isinstance(output, tuple) else output


def load(**arguments: Any) -> tuple[Worker, dict[str, Any]]:
    return Worker(**arguments), {}


def main() -> None:
    reply_to_requests(load, HadskipError)


if __name__ == "__main__":
    main()
