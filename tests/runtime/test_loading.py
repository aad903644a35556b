"""A bundle's programs and policies are those that its manifest names."""

from dataclasses import replace
from pathlib import Path

import pytest

from hadskip_export.exporters.write import Source
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import EngineOptions
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.runtime.loading import CHAINS, GATED, load_full, policy_of
from hadskip_export.runtime.policies import POLICIES
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.programs.full import Full
from hadskip_export.runtime.programs.whole import Whole
from hadskip_export.support.errors import BundleError
from tests.conftest import sentences
from tests.runtime.editing import change_manifest, copy_of
from tests.runtime.oracle import Oracle
from tests.runtime.pieces import Patience, plain_patience

TEXTS = [text for text, _ in sentences(40, 7)]
BUNDLES = {"gates": "bundle", "layers": "layers_bundle", "whole": "whole_bundle"}


@pytest.mark.parametrize("cut", BUNDLES)
def test_every_cut_loads_the_pieces_that_it_calls_and_no_other(cut: str, request: pytest.FixtureRequest):
    opened = read_bundle(request.getfixturevalue(BUNDLES[cut]))
    (info,) = opened.manifest.engines
    loaded: list[str] = []

    class Watched(OrtEngine):
        def load(self, piece):
            loaded.append(piece)
            return super().load(piece)

    engine = Watched({piece: opened.file(file) for piece, file in info.files.items()}, "fp32", EngineOptions())
    layers, gates = ([f"{kind}_0{number}" for number in range(1, 5)] for kind in ("layer", "gate"))
    called = {
        "gates": ["embeddings", *layers, *gates, "head"],
        "layers": ["embeddings", *layers, "gates", "head"],
        "whole": ["whole"],
    }
    program = GATED[cut](engine, info, opened.manifest)
    assert isinstance(program, Whole if cut == "whole" else Chain)
    assert sorted(loaded) == sorted(called[cut])
    loaded.clear()
    assert isinstance(load_full(engine, info, opened.manifest), Full) and loaded == ["full"]
    loaded.clear()
    chain = CHAINS[cut](engine, info, opened.manifest)
    assert isinstance(chain, Chain) and sorted(loaded) == sorted(called["layers" if cut == "layers" else "gates"])


def test_a_bundle_s_own_policy_is_of_its_router(bundle: Path, static_bundle: Path):
    gates = policy_of(read_bundle(bundle).manifest, [0.0, 1.0, 2.0, 3.0]).start(2)
    assert [gates.rows(index, [1.5, 2.5]) for index in range(4)] == [
        [True, True], [True, True], [False, True], [False, False],
    ]  # fmt: skip
    static = policy_of(read_bundle(static_bundle).manifest, ()).start(2)
    assert [static.rows(index, [9.0, -9.0]) for index in range(4)] == [
        [runs] * 2 for runs in (True, False, True, False)
    ]


@pytest.mark.parametrize("cut", ["gates", "layers"])
def test_one_more_policy_takes_a_class_and_a_line(
    cut: str, source: Source, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request
):
    """One with a memory, through texts, batches and a bundle, as PyTorch decides with it one input at a time."""
    copy = copy_of(request.getfixturevalue(BUNDLES[cut]), tmp_path)
    change_manifest(copy, lambda plain: plain["router"].update(kind="patience"))
    with pytest.raises(
        BundleError, match="the router 'patience' is not known; there are gates, upfront, exits, gated-exits, static"
    ):
        Predictor.load(copy)
    monkeypatch.setitem(POLICIES, "patience", lambda thresholds, route: Patience(thresholds[0], 1))
    oracle = Oracle(source, model_folder)
    expected = [oracle.decided(text, plain_patience(0.0, 1)(0)) for text in TEXTS]
    assert [one.layers for one in expected] != [oracle.gates(text).layers for text in TEXTS]
    with Predictor.load(copy) as predictor:
        for batch_size in (1, 7, 32):
            for got, answer in zip(predictor(TEXTS, batch_size=batch_size), expected, strict=True):
                assert replace(answer, probabilities={}) == type(answer)(got.label, {}, got.layers, got.truncated)
                assert got.probabilities == pytest.approx(answer.probabilities, abs=1e-4)
