"""What a build writes before there is an engine: the model as other programs know it, or nothing at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hadskip_export.exporters import write as building
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import write_bundle, write_model
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BundleError
from hadskip_export.verification.golden import read_golden
from tests.conftest import make_source, sentences, write_cut
from tests.exporters.changing import CUTS, WEIGHTS, files_of
from tests.runtime.oracle import Oracle


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("ort", "fp32"), ("openvino", "fp32"), pytest.param("openvino", "int8", marks=pytest.mark.slow)],
)
def test_every_engine_and_cut_is_built_at_once(source, tmp_path: Path, engine: str, precision: str, cut: str):
    opened = read_bundle(write_cut(source, tmp_path, cut, engine, precision))
    assert [info.name for info in opened.manifest.engines] == [f"{engine}-{precision}-{cut}"]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_it_answers_as_pytorch_and_transformers_do(source, model_folder: Path, tmp_path: Path, engine: str, cut: str):
    oracle, texts = Oracle(source, model_folder), [text for text, _ in sentences(20, 9)]
    expected = [oracle.gates(text) for text in texts]
    with Predictor.load(write_cut(source, tmp_path, cut, engine)) as predictor:
        for answers in (predictor(texts), [predictor(text) for text in texts]):
            for got, wanted in zip(answers, expected, strict=True):
                assert (got.label, got.layers) == (wanted.label, wanted.layers)
                assert got.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_two_builds_of_one_model_have_the_same_bytes(source, tmp_path: Path):
    found = []
    for name in ("one", "two"):
        write_bundle(source, tmp_path / name, EnginePlan("ort", "int8", "whole"))
        found.append(files_of(tmp_path / name))
    changing = {name for name in found[0] if found[0][name] != found[1][name]}
    assert set(found[0]) == set(found[1])
    # The safetensors library writes metadata in any order.
    assert changing <= {WEIGHTS, "golden/outputs.npz", "manifest.json", "manifest.sha256"}
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert list(one) == list(two) and all((one[name] == two[name]).all() for name in one)


def test_the_manifest_is_known_before_there_is_an_engine(source, tmp_path: Path):
    manifest = write_model(source, tmp_path)
    assert manifest.points == source.points and (manifest.default_point,) == source.points
    assert manifest.engines == () and manifest.router.kind == "gates" and manifest.router.route is None
    assert all((tmp_path / file).is_file() for file in (*manifest.pieces.values(), manifest.weights))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("bert", 4)
    assert json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_golden_answers_are_those_of_pytorch(source, bundle: Path, model_folder: Path):
    golden, oracle = read_golden(read_bundle(bundle)), Oracle(source, model_folder)
    for text, route, logits in list(zip(golden.texts, golden.routes, golden.logits, strict=True))[:12]:
        answer = oracle.gates(text)
        assert answer.layers == tuple((np.flatnonzero(route) + 1).tolist())
        shares = torch.from_numpy(logits).softmax(-1).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(shares, abs=1e-5)


def test_without_full_bert_none_of_its_tensors_is_there(model_folder: Path, tmp_path: Path):
    source = replace(make_source(model_folder, tmp_path, layers=2), full=None)
    write_bundle(source, tmp_path / "bundle")
    content = (tmp_path / "bundle" / "model" / "weights" / "fp32.safetensors").read_bytes()
    assert b'"full.' not in content and "full" not in read_bundle(tmp_path / "bundle").manifest.pieces


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["write_tensors", "place_graph", "_compare", "seal"])
def test_nothing_is_left_of_a_build_that_fails(source, tmp_path: Path, monkeypatch, where: str, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(building, where, fail)
    with pytest.raises(type(error)):
        write_bundle(source, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_not_touched(source, bundle: Path):
    before = files_of(bundle)
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(source, bundle)
    assert files_of(bundle) == before
