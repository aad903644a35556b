"""Which engines a test can run on: those of this machine, and those that need a GPU, marked so and skipped without."""

import pytest

from hadskip_export.runtime.engines import ENGINES, engine_class


def engine_params() -> list:
    params = []
    for name in ENGINES:
        lack = engine_class(name).why_not_here()
        if name in ("ort-cuda", "torch-cuda"):
            marks = [pytest.mark.gpu, pytest.mark.skipif(lack is not None, reason=str(lack))]
            params.append(pytest.param(name, marks=marks))
        elif lack is None:
            params.append(name)
    return params
