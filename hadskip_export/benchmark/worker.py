"""One system in a process of its own, run as `python -m hadskip_export.benchmark.worker`.

It reads a JSON line per request from standard input and answers with a line on standard output. Between requests it
does nothing, so idle thread pools of one system do not slow another; the parent hands out turns.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from hadskip_export.errors import HadskipError
from hadskip_export.runtime.predictor import EMBEDDING_INPUTS, Predictor
from hadskip_export.runtime.tokenization import Text, pad


class Worker:
    """Answers requests for one loaded bundle."""

    def __init__(self, bundle: str, options: dict[str, Any], texts: list[Text]):
        self._predictor = Predictor.load(bundle, **options)
        self._texts: list[Text] = [text if isinstance(text, str) else (text[0], text[1]) for text in texts]

    def call(self, rows: list[int]) -> dict[str, Any]:
        """One timed call on the texts at `rows`, as an application makes it: text in, predictions out."""
        texts = [self._texts[row] for row in rows]
        inputs = texts[0] if len(texts) == 1 else texts
        started = time.perf_counter()
        self._predictor(inputs, batch_size=len(rows))
        return {"seconds": time.perf_counter() - started}

    def pieces(self, rows: list[int]) -> dict[str, Any]:
        """Embeddings, one layer and head timed alone on the batch that the call would make."""
        model = self._predictor.bundle.manifest.model
        batch = pad(self._predictor.tokenizer.encode([self._texts[row] for row in rows]))
        chain = self._predictor.chain
        assert chain is not None
        ids = [getattr(batch, name) for name in EMBEDDING_INPUTS if name in model.inputs]
        moments = [time.perf_counter()]
        hidden = chain.embeddings(*ids)
        moments.append(time.perf_counter())
        for layer in chain.layers:
            hidden = layer(hidden, batch.attention_mask)
        moments.append(time.perf_counter())
        chain.head(hidden)
        moments.append(time.perf_counter())
        embeddings, layers, head = np.diff(moments)
        return {"embeddings": embeddings, "layer": layers / len(chain.layers), "head": head}

    def answers(self) -> dict[str, Any]:
        """Class index and layers run of every text, untimed."""
        logits, routes = self._predictor.run(self._predictor.tokenizer.encode(self._texts))
        return {"predicted": logits.argmax(axis=1).tolist(), "layers_run": routes.sum(axis=1).tolist()}


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing a library prints may mix with the replies
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("request")
        try:
            if name == "load":
                worker = Worker(**request)
                reply: dict[str, Any] = {}
            else:
                reply = getattr(worker, name)(**request)
        except HadskipError as error:
            reply = {"error": str(error), "kind": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
