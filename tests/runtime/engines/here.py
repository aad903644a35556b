"""Which engines a test can run on: those of this machine, and those that need a GPU, marked so and skipped without."""

from typing import Any

import numpy as np
import pytest

from hadskip_export.runtime import Predictor
from hadskip_export.runtime.engines import ENGINES, engine_class
from hadskip_export.support.errors import EngineError


def assert_same_answers(both: tuple[Predictor, Predictor], texts: list[str], **options: Any) -> None:
    """Two predictors take the same routes to the same logits."""
    encoded = both[0].tokenizer.encode(texts)
    (logits, routes), (expected, expected_routes) = (one.run(encoded, **options) for one in both)
    np.testing.assert_array_equal(routes, expected_routes)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def engine_params() -> list:
    params = []
    for name in ENGINES:
        try:
            lack = engine_class(name).why_not_here()
        except EngineError as error:  # its library is not installed
            lack = str(error)
        if name in ("ort-cuda", "torch-cuda"):
            marks = [pytest.mark.gpu, pytest.mark.skipif(lack is not None, reason=str(lack))]
            params.append(pytest.param(name, marks=marks))
        elif lack is None:
            params.append(name)
    return params
