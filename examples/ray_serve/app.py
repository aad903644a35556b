"""A bundle behind Ray Serve: replicas on a cluster, each of which computes together what comes together.

BUNDLE=bundle serve run app:application
curl http://127.0.0.1:8000/ -H "Content-Type: application/json" -d '{"text": "a gripping film"}'
"""

import asyncio
import os
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from hadskip_export.runtime import DataError, Prediction, Predictor


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Classifier:
    """One Predictor for each replica: it cannot be pickled, so each loads its own."""

    def __init__(self, bundle: str):
        self._predictor = Predictor.load(bundle, threads=1)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0)
    async def predict(self, texts: list[str]) -> list[Prediction | DataError]:
        """What comes while a batch is computed is the next one."""
        return await asyncio.to_thread(self._answer, texts)

    def _answer(self, texts: list[str]) -> list[Prediction | DataError]:
        try:
            return list(self._predictor(texts))
        except DataError as error:
            if len(texts) == 1:
                return [error]
            return [answer for text in texts for answer in self._answer([text])]  # one bad text costs no other

    async def __call__(self, request: Request) -> Any:
        """`{"text": ...}` -> its label, probabilities and layers."""
        question = await request.json()
        if not isinstance(question, dict) or not isinstance(question.get("text"), str):
            return JSONResponse({"error": 'expected {"text": "..."}'}, 422)
        answer = await self.predict(question["text"])
        if isinstance(answer, DataError):
            return JSONResponse({"error": str(answer)}, 422)
        return {"label": answer.label, "probabilities": answer.probabilities, "layers": list(answer.layers)}


application = Classifier.bind(os.path.abspath(os.environ["BUNDLE"]))
