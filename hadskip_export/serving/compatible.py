"""Routes of servers that others have clients of: vLLM's classification, Jina's and Cohere's reranking."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from hadskip_export.runtime.answers import ranked
from hadskip_export.runtime.tokenization import Text
from hadskip_export.serving.answers import relevance_of, tell_layers
from hadskip_export.serving.limits import RequestError
from hadskip_export.serving.schema import (
    Document,
    LabelScores,
    ManyScores,
    Relevance,
    RelevanceQuestion,
    Relevances,
    ScoresQuestion,
)
from hadskip_export.serving.service import Answered, Service


def compatible(service: Service, dependencies: Sequence[Any]) -> APIRouter:
    """
    Args:
        dependencies: of each route, as FastAPI has them: who may ask.
    """
    routes = APIRouter(dependencies=list(dependencies))

    @routes.post("/classify")
    async def classify(question: ScoresQuestion, response: Response) -> ManyScores:
        """Of each input the likeliest label, and every label's probability."""
        labels = service.predictor.labels
        if service.predictor.problem.is_score:
            raise RequestError(422, "Validation", "this model gives a score, and no labels; ask /predict or /rerank")
        inputs: list[Text] = [question.input] if isinstance(question.input, str) else list(question.input)
        answers = await service.answer(inputs)
        tell_layers(response, answers)
        data = [_scores(index, answer, labels) for index, answer in enumerate(answers)]
        return ManyScores(id=_new_id("classify"), created=int(time.time()), model=_name(service), data=data)

    @routes.post("/v1/rerank", response_model_exclude_none=True)
    @routes.post("/v2/rerank", response_model_exclude_none=True)
    async def rerank(question: RelevanceQuestion, response: Response) -> Relevances:
        """The documents' places by their relevance, the best first."""
        documents = [one if isinstance(one, str) else one.text for one in question.documents]
        answers = await relevance_of(service, question.query, documents, None, truncate=True)
        tell_layers(response, answers)
        order = ranked(documents, [a.prediction for a in answers], [a.logits[0] for a in answers])
        results = [
            Relevance(
                index=place.index, relevance_score=place.score,
                document=Document(text=place.document) if question.return_documents else None,
            )
            for place in order[: question.top_n]
        ]  # fmt: skip
        return Relevances(id=_new_id("rerank"), model=_name(service), results=results)

    return routes


def _scores(index: int, answer: Answered, labels: Sequence[str]) -> LabelScores:
    prediction = answer.prediction
    probabilities = [prediction.probabilities[label] for label in labels]
    return LabelScores(index=index, label=prediction.label, probs=probabilities, num_classes=len(labels))


def _name(service: Service) -> str:
    return service.predictor.bundle.path.name


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
