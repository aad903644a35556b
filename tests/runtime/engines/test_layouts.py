"""All gate layouts take the same routes on every engine, whatever the model, the inputs and the threshold; only where
a margin on the way is a near tie may they part."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.exporters.compile import compile_engine
from hadskip_export.exporters.write import write_bundle
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.engines import engine_class
from hadskip_export.runtime.tokenization import pad
from hadskip_export.verification.parity import ROUTE_EPSILON, count_flips
from hadskip_export.verification.references import OnnxReference
from tests.conftest import make_source
from tests.runtime.engines.here import engine_params

DEPTHS = [1, 2, 4]
words = st.sampled_from(["a", "the", "good", "bad", "film", "plot", "is", "was", "very", "not", "and", "but"])
texts = st.lists(st.lists(words, max_size=25).map(" ".join), min_size=1, max_size=8)


@pytest.fixture(scope="module", params=DEPTHS)
def model(request, model_folder: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == 4:
        return bundle
    folder = tmp_path_factory.mktemp("layouts")
    write_bundle(make_source(model_folder, folder, layers=request.param, seed=request.param), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module", params=engine_params())
def layouts(request, model: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same pieces in every layout that the engine has, each with every way to run single inputs; the plainest
    way to run them."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("layouts") / "bundle")
    opened = read_bundle(folder)
    manifest, predictors = opened.manifest, []
    kinds = engine_class(request.param).layouts("fp32")
    every_other = tuple(range(1, manifest.model.layers + 1, 2))
    singles = ["chain", "guess", "graph"] if "fused" in kinds else ["chain"]
    for gates, single in product(kinds, singles):
        guess = every_other if single == "guess" else None
        info = compile_engine(folder, manifest.pieces, manifest.model, request.param, "fp32", gates, single, guess)
        assert (info.gates, info.single, info.guess) == (gates, single, guess)
        predictors.append(Predictor(Bundle(folder, replace(manifest, engines=(info,)))))
    assert len(predictors) > 1
    yield predictors, OnnxReference(opened)
    for predictor in predictors:
        predictor.close()


@settings(max_examples=40, deadline=None)
@given(texts=texts, threshold=st.floats(-4, 4), batch_size=st.integers(1, 8))
def test_routes_and_logits_agree_away_from_near_ties(layouts, texts, threshold, batch_size):
    predictors, reference = layouts
    encoded = predictors[0].tokenizer.encode(texts)
    (logits, routes), *others = (
        predictor.run(encoded, batch_size=batch_size, gate_threshold=threshold) for predictor in predictors
    )
    margins = np.stack([reference.trace(pad([one]), threshold).margins for one in encoded])
    near = np.full(routes.shape[1], ROUTE_EPSILON)
    for other_logits, other_routes in others:
        assert count_flips(margins - threshold, routes, other_routes, near) == 0
        same = (routes == other_routes).all(axis=1)
        np.testing.assert_allclose(logits[same], other_logits[same], atol=1e-5)
