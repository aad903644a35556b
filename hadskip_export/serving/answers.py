"""Between what clients send and what the service answers."""

from fastapi import Response

from hadskip_export.runtime.tokenization import Text
from hadskip_export.serving.schema import Score
from hadskip_export.serving.service import Answered, Service
from hadskip_export.support.errors import DataError

LAYERS_RUN = "X-Layers-Run"  # of each input, in the order of the inputs


def texts_of(inputs: str | list[str] | list[list[str]]) -> tuple[list[Text], bool]:
    """The texts and pairs, and whether they are many.

    Raises:
        DataError: a list that is neither.
    """
    several = [item for item in inputs if isinstance(item, list)] if isinstance(inputs, list) else []
    every = several or [[inputs] if isinstance(inputs, str) else list(map(str, inputs))]
    texts: list[Text] = []
    for number, parts in enumerate(every, start=1):
        if not 1 <= len(parts) <= 2:
            raise DataError(
                f"input {number}: a list of {len(parts)} texts; give a text, a pair [first, second], or many as"
                " [[text], [text], ...]"
            )
        texts.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
    return texts, bool(several)


def check_side(service: Service, side: str | None) -> None:
    """
    Raises:
        DataError: texts shall be cut where the model's tokenizer does not.
    """
    own = service.predictor.tokenizer.truncation_side
    if side is not None and side.lower() != own:
        raise DataError(f"truncation_direction: {side}; this model's tokenizer cuts on the {own}; leave it out")


async def relevance_of(
    service: Service, query: str, documents: list[str], budget: float | None, truncate: bool
) -> list[Answered]:
    """Answers that are scores."""
    pairs: list[Text] = [(query, document) for document in documents]
    return await service.answer(pairs, budget=budget, truncate=truncate, needs_score=True)


def scores_of(answer: Answered, raw: bool) -> list[Score]:
    """The likeliest first."""
    prediction = answer.prediction
    values = prediction.probabilities or {prediction.label: prediction.score}
    if raw:
        values = dict(zip(values, answer.logits, strict=True))
    return [Score(score=value, label=label) for label, value in sorted(values.items(), key=lambda item: -item[1])]


def tell_layers(response: Response, answers: list[Answered]) -> None:
    response.headers[LAYERS_RUN] = ",".join(str(len(answer.prediction.layers)) for answer in answers)
