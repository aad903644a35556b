"""What a client sends and gets: the routes' JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, Strict
from typing_extensions import TypeAliasType

# One error is enough of a list: a body may hold a million.
Texts = TypeAliasType("Texts", Annotated[list[str], FailFast()])
ManyTexts = TypeAliasType("ManyTexts", Annotated[list[Texts], FailFast()])
Inputs = Annotated[
    str | Texts | ManyTexts,
    Field(
        description="A text; a pair [first, second]; or many [[text], [first, second], ...]", examples=["a fine film"]
    ),
]
Budget = Annotated[
    float | None, Strict(), Field(description="Layers per input on average; the operating point if left out")
]
Truncate = Annotated[bool, Field(description="Whether the end of a text that is too long may be left out")]
Side = Annotated[
    Literal["Left", "Right", "left", "right"] | None,
    Field(description="Which end of a text that is too long is left out: that of the model's tokenizer, and no other"),
]
Raw = Annotated[bool, Field(description="Logits in place of probabilities")]


class Asked(BaseModel):
    """What a client sends. A field that is not known is refused: it would be one that changes nothing."""

    model_config = ConfigDict(extra="forbid")


class Question(Asked):
    """What `/predict` takes."""

    inputs: Inputs
    raw_scores: Raw = False
    truncate: Truncate = True
    truncation_direction: Side = None
    budget: Budget = None


class Parameters(Asked):
    """Of Hugging Face's text classification."""

    top_k: int | None = Field(default=None, ge=1)
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class EndpointQuestion(Asked):
    """What `/` takes."""

    inputs: Inputs
    parameters: Parameters | None = None


class Score(BaseModel):
    """A label and its probability, or its logit; of a model that gives a score, that."""

    score: float
    label: str


class RerankQuestion(Asked):
    """What `/rerank` takes."""

    query: str
    texts: Texts
    raw_scores: Raw = False
    return_text: bool = False
    truncate: Truncate = True
    truncation_direction: Side = None
    budget: Budget = None


class Rank(BaseModel):
    """A text's place."""

    index: int
    score: float
    text: str | None = None


class RankQuestion(Asked):
    """What `/rank` takes."""

    query: str
    documents: Texts
    top: int | None = Field(default=None, ge=1)
    budget: Budget = None


class RankedDocument(BaseModel):
    """A document's place, and what was computed for it."""

    index: int
    document: str
    score: float
    layers: list[int]
    truncated: bool


class Problemed(BaseModel):
    """What went wrong."""

    error: str
    error_type: str


class ScoresQuestion(Asked):
    """What `/classify` takes, as vLLM has it. `model` is whatever the client calls it: there is one."""

    input: str | Texts
    model: str | None = None


class LabelScores(BaseModel):
    """The likeliest label of an input, and the probability of each, in the order of the model's."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ManyScores(BaseModel):
    """What `/classify` gives."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[LabelScores]


class AskedDocument(Asked):
    """A document as an object."""

    text: str


class RelevanceQuestion(Asked):
    """What `/v1/rerank` and `/v2/rerank` take, as Jina and Cohere have them."""

    query: str
    documents: Annotated[list[str | AskedDocument], FailFast()]
    model: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False


class Document(BaseModel):
    text: str


class Relevance(BaseModel):
    """A document's place and relevance, from 0 to 1."""

    index: int
    relevance_score: float
    document: Document | None = None


class Relevances(BaseModel):
    """What `/v1/rerank` and `/v2/rerank` give, the best first."""

    id: str
    model: str
    results: list[Relevance]
