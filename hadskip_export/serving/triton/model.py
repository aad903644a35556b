"""The model in Triton's Python backend: requests that came together are computed together, each answered for itself."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.data.problems import MULTI, SINGLE, Problem
from hadskip_export.runtime.answers import Prediction
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.serving.triton.repository import BUNDLE, PAIR, TEXT, Settings
from hadskip_export.support.errors import BudgetError, DataError, HadskipError, first_line

TYPES = {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_, "TYPE_STRING": np.object_}


@dataclass(frozen=True)
class _Asked:
    """By one request."""

    texts: Sequence[Text]
    budget: float | None


class TritonPythonModel:
    """What the backend makes and calls, by the names that it has for it."""

    def initialize(self, args: dict[str, str]) -> None:
        """
        Raises:
            HadskipError: see `Predictor.load`.
        """
        import triton_python_backend_utils as backend  # only Triton has it

        self._backend: Any = backend
        config = json.loads(args["model_config"])
        settings = Settings.of({name: given["string_value"] for name, given in config["parameters"].items()})
        self._types = {one["name"]: TYPES[one["data_type"]] for one in config["output"]}
        place = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self._predictor = Predictor.load(
            place, engine=settings.engine, threads=settings.threads, budget=settings.budget, router=settings.router
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer, or an error, for each."""
        found: list[Any] = [None] * len(requests)
        together: dict[float | None, dict[int, _Asked]] = {}  # by budget
        for number, request in enumerate(requests):
            try:
                asked = self._read(request)
                together.setdefault(asked.budget, {})[number] = asked
            except HadskipError as error:
                found[number] = self._refused(error)
        for asked_together in together.values():
            for number, response in self._answer(asked_together):
                found[number] = response
        return found

    def finalize(self) -> None:
        """At the model's end."""
        self._predictor.close()

    def _read(self, request: Any) -> _Asked:
        """
        Raises:
            DataError: bytes that are no text, or pairs and texts that are not as many.
            BudgetError: no number as `budget`.
        """
        first = self._strings(request, TEXT)
        if first is None:
            raise DataError(f"no {TEXT}; give one for each input")
        second = self._strings(request, PAIR)
        if second is not None and len(second) != len(first):
            raise DataError(f"{len(first)} of {TEXT} and {len(second)} of {PAIR}; give one of each for each input")
        budget = json.loads(request.parameters() or "{}").get("budget")
        try:
            budget = None if budget is None else float(str(budget))  # not of True
        except ValueError:
            raise BudgetError(f"budget={budget!r}: expected layers per input on average") from None
        return _Asked(first if second is None else list(zip(first, second, strict=True)), budget)

    def _strings(self, request: Any, name: str) -> list[str] | None:
        tensor = self._backend.get_input_tensor_by_name(request, name)
        try:
            return None if tensor is None else [value.decode() for value in tensor.as_numpy().reshape(-1)]
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: no UTF-8 ({error.reason})") from error

    def _answer(self, together: dict[int, _Asked]) -> Iterator[tuple[int, Any]]:
        """What one of them cannot have is no reason for the others to go without."""
        budget = next(iter(together.values())).budget
        texts = [text for asked in together.values() for text in asked.texts]
        try:
            predictions = self._predictor(texts, budget=budget)
        except Exception as error:
            if len(together) == 1:
                yield next(iter(together)), self._refused(error)
                return
            for number, asked in together.items():
                yield from self._answer({number: asked})
            return
        begin = 0
        for number, asked in together.items():
            end = begin + len(asked.texts)
            yield number, self._response(predictions[begin:end])
            begin = end

    def _response(self, predictions: Sequence[Prediction]) -> Any:
        rows = [values_of(self._predictor.problem, prediction) for prediction in predictions]
        return self._backend.InferenceResponse(
            [
                self._backend.Tensor(name, np.array([row[name] for row in rows], kind))
                for name, kind in self._types.items()
            ]
        )

    def _refused(self, error: Exception) -> Any:
        said = str(error) if isinstance(error, HadskipError) else f"{type(error).__name__}: {first_line(error)}"
        return self._backend.InferenceResponse([], self._backend.TritonError(said))


def values_of(problem: Problem, prediction: Prediction) -> dict[str, list[Any]]:
    """One input's row of each output, see `repository.outputs_of`."""
    answers: dict[str, list[Any]] = {"score": [prediction.score]}
    if problem.type in (SINGLE, MULTI):
        answers = {"probabilities": list(prediction.probabilities.values())}
    if problem.type == SINGLE:
        answers["label"] = [prediction.label]
    if problem.type == MULTI:
        answers["given"] = [label in prediction.labels for label in problem.labels]
    return answers | {"layers_run": [len(prediction.layers)], "truncated": [prediction.truncated]}
