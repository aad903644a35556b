"""An engine is written beside what is there, and what its check found is written down."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hadskip_export.exporters import engine as engines
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime import read_bundle
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.verification.parity import compare
from hadskip_export.verification.references import OnnxReference
from tests.exporters.changing import CUTS, copy_of, files_of


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_what_is_written_has_the_pieces_of_its_cut_and_is_yet_to_be_checked(
    bundle: Path, tmp_path: Path, engine: str, cut
):
    mine = copy_of(bundle, tmp_path)
    before = files_of(mine)
    info = engines.write(read_bundle(mine), EnginePlan(engine, "fp32", cut))
    assert (info.name, info.parity, info.first_bad_piece) == (f"{engine}-fp32-{cut}", "unverified", None)
    layers = [f"layer_0{number}" for number in range(1, 5)]
    gates = ["gates"] if cut == "layers" else [f"gate_0{number}" for number in range(1, 5)]
    whole = {"ort": ["whole"], "openvino": ["whole", "whole_alone"]}[engine] if cut == "whole" else []
    assert set(info.files) == {"embeddings", *layers, *gates, "head", "full", *whole}
    assert all((mine / file).is_file() for file in info.files.values())
    after = files_of(mine)
    assert {name: after[name] for name in before} == before


def test_of_a_static_route_there_are_its_layers_and_no_gates_in_any_cut(static_bundle: Path, tmp_path: Path):
    mine = copy_of(static_bundle, tmp_path)
    for cut in CUTS:
        info = engines.write(read_bundle(mine), EnginePlan("ort", "fp32", cut))
        whole = {"whole"} if cut == "whole" else set()
        assert set(info.files) == {"embeddings", "layer_01", "layer_03", "head", "full"} | whole


def test_a_folder_of_its_own_is_never_somebody_else_s(bundle: Path, tmp_path: Path):
    opened = read_bundle(copy_of(bundle, tmp_path))
    plan = EnginePlan("ort", "fp32", "gates")
    assert [engines.write(opened, plan).folder for _ in range(2)] == [
        "engines/ort-fp32-gates-2", "engines/ort-fp32-gates-3",
    ]  # fmt: skip


def test_what_the_check_found_is_in_the_engine_and_beside_it(bundle: Path, tmp_path: Path):
    opened = read_bundle(copy_of(bundle, tmp_path))
    written = engines.write(opened, EnginePlan("ort", "int8", "layers"))
    reports = []

    def check(predictor):
        reports.append(compare(OnnxReference(opened), predictor, predictor.tokenizer.encode(["a good film"] * 3)))
        return reports[0]

    info, report = engines.verify(opened, written, check)
    assert [report] == reports and report.texts == 3
    assert (info.parity, info.first_bad_piece, info.tolerance) == ("passed", None, report.tolerance)
    assert info.tolerance != written.tolerance
    beside = json.loads((opened.path / info.folder / "report.json").read_text())
    assert beside == json.loads(json.dumps(asdict(report)))


def test_what_cannot_run_here_stays_unverified_and_that_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    opened = read_bundle(copy_of(bundle, tmp_path))
    written = engines.write(opened, EnginePlan("ort", "int8", "gates"))
    monkeypatch.setattr(OrtEngine, "why_not_here", staticmethod(lambda: "no such device"))
    assert engines.verify(opened, written, lambda _: pytest.fail("it ran")) == (written, None)
    assert "ort-int8-gates: built, parity unverified: no such device" in capsys.readouterr().err
    assert list((opened.path / written.folder).iterdir()) == []
