"""A plan is what is to be had, or it is refused in a line that says what is."""

import sys
from dataclasses import FrozenInstanceError

import pytest

from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.support.errors import EngineError


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("abacus", "fp32", "gates"),
            "--engine abacus: not known; there are ort, ort-cuda, openvino, torch-cuda, trt,",
        ),
        (("ort", "int7", "gates"), "--precision int7: not to be had with ort; there are fp32, int8"),
        (("ort", "bf16", "whole"), "--precision bf16: not to be had with ort; there are fp32, int8"),
        (("openvino", "fp16", "gates"), "--precision fp16: not to be had with openvino; there are fp32, bf16, int8"),
        (("ort", "fp32", "fused"), "--cut fused: not to be had with ort; there are gates, layers, whole"),
        (("trt", "fp32", "whole"), "--cut whole: not to be had with trt; there are gates, layers"),
        (("trt-rtx", "fp16", "graph"), "--cut graph: not to be had with trt-rtx; there are gates, layers"),
    ],
    ids=str,
)
def test_what_is_not_to_be_had_is_refused_in_a_line_that_says_what_is(asked: tuple, message: str):
    for make in (EnginePlan, EnginePlan.of):
        with pytest.raises(EngineError) as error:
            make(*asked)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["abacus", "ort"])
def test_without_a_cut_what_is_wrong_otherwise_is_said_all_the_same(engine: str):
    with pytest.raises(EngineError, match="--engine abacus" if engine == "abacus" else "--precision int7"):
        EnginePlan.of(engine, "int7")


def test_the_cut_is_the_engine_s_fastest_if_left_out():
    assert EnginePlan.of() == EnginePlan("ort", "fp32", "whole")
    for engine in ("ort", "openvino"):
        for precision in EnginePlan.of(engine).target.precisions:
            plan = EnginePlan.of(engine, precision)
            assert plan.cut == plan.target.cuts[0] == "whole"
    assert EnginePlan.of("ort", "int8", "layers").cut == "layers"


def test_its_files_are_called_by_engine_and_precision_whatever_the_cut():
    assert {EnginePlan("openvino", "int8", cut).tag for cut in ("gates", "layers", "whole")} == {"openvino-int8"}


def test_it_does_not_change():
    with pytest.raises(FrozenInstanceError):
        EnginePlan.of().precision = "int8"


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"hadskip-export\[ort\]"):
        EnginePlan.of("ort")


def test_what_can_be_built_here_and_not_run_cannot_be_measured(monkeypatch: pytest.MonkeyPatch):
    plan = EnginePlan.of("ort", "int8")
    assert plan.check_measurable() is plan
    monkeypatch.setattr(OrtEngine, "why_not_here", staticmethod(lambda: "no such device"))
    with pytest.raises(EngineError, match="ort-int8: cannot be measured here: no such device"):
        plan.check_measurable()
