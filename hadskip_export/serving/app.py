"""The routes: what a client sends and gets, by the names of those who have clients already.

`/predict` and `/rerank` are text-embeddings-inference's, `/` is that of Hugging Face's inference endpoints, which its
`InferenceClient` speaks. `/rank` is ours and says what the others have no place for. `compatible.py` has more of those.
"""

import hmac
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

import hadskip_export
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE
from hadskip_export.runtime.answers import ranked
from hadskip_export.serving.answers import check_side, relevance_of, scores_of, tell_layers, texts_of
from hadskip_export.serving.compatible import compatible
from hadskip_export.serving.limits import RequestError
from hadskip_export.serving.middleware import Count, LimitBody, problem
from hadskip_export.serving.schema import (
    EndpointQuestion,
    Parameters,
    Problemed,
    Question,
    Rank,
    RankedDocument,
    RankQuestion,
    RerankQuestion,
    Score,
)
from hadskip_export.serving.service import Service
from hadskip_export.support.errors import BudgetError, DataError, HadskipError

# What makes a number of a logit, by the names of Hugging Face's endpoints.
FUNCTIONS = {SINGLE: "softmax", MULTI: "sigmoid", RANKING: "sigmoid", REGRESSION: "none"}


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """
    Args:
        token: what a client must send as its bearer token; nothing if left out.
    """
    app = FastAPI(
        title="hadskip-export", version=hadskip_export.__version__, lifespan=lambda _: service.running(),
        docs_url="/docs" if token is None else None, redoc_url=None,
        openapi_url="/openapi.json" if token is None else None,
        responses={code: {"model": Problemed} for code in (413, 422, 429, 500, 504)},
    )  # fmt: skip
    app.add_middleware(LimitBody, limits=service.limits)
    app.add_middleware(Count, metrics=service.metrics)
    _explain(app)
    may = [] if token is None else [Depends(_bearer(token))]

    @app.post("/predict", dependencies=may)
    async def predict(question: Question, response: Response) -> list[Score] | list[list[Score]]:
        """Every label's probability, the likeliest first: of a text or pair a list, of many a list of lists."""
        check_side(service, question.truncation_direction)
        texts, many = texts_of(question.inputs)
        answers = await service.answer(texts, budget=question.budget, truncate=question.truncate)
        tell_layers(response, answers)
        scores = [scores_of(answer, question.raw_scores) for answer in answers]
        return scores if many else scores[0]

    @app.post("/", dependencies=may)
    async def endpoint(question: EndpointQuestion, response: Response) -> list[list[Score]]:
        """The same, of a text too a list of lists."""
        wanted, texts = question.parameters or Parameters(), texts_of(question.inputs)[0]
        own = FUNCTIONS[service.predictor.problem.type]
        if wanted.function_to_apply not in (None, "none", own):
            none = "" if own == "none" else ", or none"
            raise DataError(f"function_to_apply: {wanted.function_to_apply}; this model's is {own}{none}")
        answers = await service.answer(texts)
        tell_layers(response, answers)
        raw = wanted.function_to_apply == "none"
        return [scores_of(answer, raw)[: wanted.top_k] for answer in answers]

    @app.post("/rerank", dependencies=may, response_model_exclude_none=True)
    async def rerank(question: RerankQuestion, response: Response) -> list[Rank]:
        """The texts' places by their relevance, from 0 to 1, the best first."""
        check_side(service, question.truncation_direction)
        answers = await relevance_of(service, question.query, question.texts, question.budget, question.truncate)
        tell_layers(response, answers)
        order = ranked(question.texts, [a.prediction for a in answers], [a.logits[0] for a in answers])
        return [
            Rank(
                index=place.index,
                score=answers[place.index].logits[0] if question.raw_scores else place.score,
                text=place.document if question.return_text else None,
            )
            for place in order
        ]

    @app.post("/rank", dependencies=may)
    async def rank(question: RankQuestion) -> list[RankedDocument]:
        """`Predictor.rank`: the documents by their relevance, the best first, with the layers that each ran."""
        answers = await relevance_of(service, question.query, question.documents, question.budget, truncate=True)
        order = ranked(question.documents, [a.prediction for a in answers], [a.logits[0] for a in answers])
        return [
            RankedDocument(
                index=place.index, document=place.document, score=place.score, layers=list(place.layers),
                truncated=place.truncated,
            )
            for place in order[: question.top]
        ]  # fmt: skip

    app.include_router(compatible(service, may))

    @app.get("/health")
    async def health(response: Response) -> dict[str, str]:
        """Whether the process lives, and computes what it is asked."""
        response.status_code = 200 if service.lives else 503
        return {"status": "ok" if service.lives else "dead"}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, bool]:
        """Whether it takes requests: 503 while its queue is full, and once it was told to end."""
        response.status_code = 200 if service.has_room else 503
        return {"ready": service.has_room}

    @app.get("/info", dependencies=may)
    async def info() -> dict[str, Any]:
        """What is served."""
        predictor, limits = service.predictor, service.limits
        model = predictor.bundle.manifest.model
        return {
            "bundle": str(predictor.bundle.path), "engine": predictor.engine_info.name, "labels": predictor.labels,
            "problem_type": predictor.problem.type, "layers": model.layers, "max_input_length": model.max_length,
            "max_client_batch_size": limits.inputs, "budget": service.budget,
            "version": hadskip_export.__version__,
        }  # fmt: skip

    @app.get("/metrics", dependencies=may, include_in_schema=False)
    async def metrics() -> Response:
        text, kind = service.metrics.text()
        return Response(text, headers={"Content-Type": kind})

    return app


def _bearer(token: str) -> Callable[..., None]:
    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        """
        Raises:
            RequestError: another token, or none.
        """
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise RequestError(401, "Unauthorized", "send the service's token: Authorization: Bearer TOKEN")

    return check


def _explain(app: FastAPI) -> None:
    """Errors as text-embeddings-inference has them, a line each."""

    @app.exception_handler(HadskipError)
    async def own(_: Request, error: HadskipError) -> JSONResponse:
        if isinstance(error, RequestError):
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            return problem(error.status, error.kind, str(error), headers)
        client = isinstance(error, DataError | BudgetError)
        return problem(422, "Validation", str(error)) if client else problem(500, "Backend", str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        remedy = (
            "" if "json" in request.headers.get("content-type", "").lower() else "; say Content-Type: application/json"
        )
        return problem(422, "Validation", f"{where}: {first['msg']}{remedy}")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, of what no JSON can be read from
            return problem(422, "Validation", "body: no JSON in UTF-8, or too deep; send it as that, not compressed")
        kind = "Overloaded" if error.status_code == 429 else "Validation"
        return problem(error.status_code, kind, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "Backend", type(error).__name__)
