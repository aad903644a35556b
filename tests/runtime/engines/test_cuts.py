"""All cuts take the same routes on every engine, whatever the model, the inputs and the threshold; only where a margin
on the way is a near tie may they part."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.exporters import engine as engines
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets import target_of
from hadskip_export.exporters.write import write_bundle
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.engines import ENGINES
from hadskip_export.runtime.tokenization import pad
from hadskip_export.verification.parity import ROUTE_EPSILON, count_flips
from hadskip_export.verification.references import OnnxReference
from tests.conftest import make_source
from tests.runtime.engines.here import engine_params
from tests.runtime.engines.host import ON_HOST

DEPTHS = [1, 2, 4]
words = st.sampled_from(["a", "the", "good", "bad", "film", "plot", "is", "was", "very", "not", "and", "but"])
texts = st.lists(st.lists(words, max_size=25).map(" ".join), min_size=1, max_size=8)


@pytest.fixture(scope="module", params=DEPTHS)
def model(request, model_folder: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == 4:
        return bundle
    folder = tmp_path_factory.mktemp("cuts")
    source = make_source(model_folder, folder, layers=request.param, seed=request.param)
    # A budget of 2 is one that a model of one layer has not got.
    write_bundle(replace(source, points=(replace(source.points[0], budget=1.0),), budget=1.0), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module", params=[*engine_params(), *ON_HOST])
def cuts(request, model: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same model in every cut that the engine has, and the plainest way to run it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, line in ON_HOST.items():
            patch.setitem(ENGINES, name, line)
        folder = shutil.copytree(model, tmp_path_factory.mktemp("cuts") / "bundle")
        opened = read_bundle(folder)
        predictors = []
        for cut in target_of(request.param).cuts:
            info = engines.write(opened, EnginePlan(request.param, "fp32", cut))
            assert info.cut == cut
            predictors.append(Predictor(Bundle(folder, replace(opened.manifest, engines=(info,)))))
        assert len(predictors) > 1
        yield predictors, OnnxReference(opened)
        for predictor in predictors:
            predictor.close()


@settings(max_examples=40, deadline=None)
@given(
    texts=texts,
    threshold=st.floats(-4, 4),
    batch_size=st.integers(1, 8),
    most=st.none() | st.integers(1, 4),
)
def test_routes_and_logits_agree_away_from_near_ties(cuts, texts, threshold, batch_size, most):
    predictors, reference = cuts
    encoded = predictors[0].tokenizer.encode(texts)
    num_layers = predictors[0].bundle.manifest.model.layers
    options = {"gate_threshold": threshold, "max_layers": most and min(most, num_layers)}
    (logits, routes), *others = (predictor.run(encoded, batch_size=batch_size, **options) for predictor in predictors)
    thresholds = np.full(num_layers, threshold, np.float32)
    margins = np.stack([reference.trace(pad([one]), thresholds).margins for one in encoded])
    near = np.full(num_layers, ROUTE_EPSILON)
    for other_logits, other_routes in others:
        assert count_flips(margins - thresholds, routes, other_routes, near) == 0
        same = (routes == other_routes).all(axis=1)
        np.testing.assert_allclose(logits[same], other_logits[same], atol=1e-5)
