"""`doctor`: features are those the system tells, nothing is measured twice, and what is recommended is the fastest."""

import importlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import hadskip_export
from hadskip_export.benchmark import random_bundle, systems
from hadskip_export.cli import main
from hadskip_export.commands import doctor as diagnosis
from hadskip_export.commands.doctor import FEATURES, WORTH_WHILE, doctor
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets import target_of
from hadskip_export.report import text
from hadskip_export.runtime.engines import ENGINES, engine_class
from hadskip_export.support.errors import EngineError, optional_import

RUN_HERE = [name for name in ENGINES if engine_class(name).why_not_here() is None]
FIGURES = {"ort-fp32": 10.0, "ort-int8": 4.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hadskip-export" / "doctor.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The engines of each measurement; none of them takes any time."""
    found: list[list[str]] = []
    monkeypatch.setattr(diagnosis, "layer_times", lambda engines, *_: (found.append(engines), (dict(FIGURES), True))[1])
    return found


# Features


def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(diagnosis, "CPUINFO", file)


X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: {}\nbugs\t\t: avx2 spectre_v1\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("fpu sse4_2"), set()),
        (X86.format("fpu avx2"), {"AVX2"}),
        (X86.format("avx2 avx512f avx512_vnni"), {"AVX2", "AVX512", "VNNI"}),
        (X86.format("avx2 avx_vnni"), {"AVX2", "VNNI"}),
        (X86.format("avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8"), set(FEATURES)),
        (X86.format("avx2x avx512fx"), set()),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n", {"VNNI", "BF16"}),
    ],
    ids=["old", "AVX2", "server", "client", "all", "other words", "ARM"],
)
def test_features_are_the_flags_of_the_first_processor(tmp_path: Path, monkeypatch, text: str, expected: set[str]):
    cpuinfo(tmp_path, monkeypatch, text)
    assert diagnosis.features() == {name: name in expected for name in FEATURES}


def test_a_system_that_tells_nothing_has_no_features_to_tell(tmp_path: Path, monkeypatch, measured):
    cpuinfo(tmp_path, monkeypatch, "processor\t: 0\n")
    assert diagnosis.features() is None
    monkeypatch.setattr(diagnosis, "CPUINFO", tmp_path / "missing")
    assert diagnosis.features() is None
    assert "features: not told by this system" in text.diagnosis(doctor())


# The cache


def test_the_same_machine_is_measured_once(measured: list[list[str]]):
    first, second = doctor(), doctor()
    assert measured == [RUN_HERE]
    assert first.layer_ms == second.layer_ms == FIGURES


def test_fresh_measures_again_and_is_remembered(measured: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    doctor()
    monkeypatch.setitem(FIGURES, "ort-fp32", 99.0)
    assert doctor().layer_ms["ort-fp32"] == 10.0
    assert doctor(fresh=True).layer_ms["ort-fp32"] == 99.0
    assert doctor().layer_ms["ort-fp32"] == 99.0
    assert len(measured) == 2


@pytest.mark.parametrize("what", ["chip", "cpus", "system", "versions"])
def test_another_machine_is_measured_for_itself(measured: list[list[str]], monkeypatch: pytest.MonkeyPatch, what: str):
    doctor()
    here = diagnosis.environment()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(diagnosis, "environment", lambda: here | {what: {"onnxruntime": "0.0"}})
        doctor()
        doctor()
        assert len(measured) == 2
    doctor()  # neither has pushed the other out
    assert len(measured) == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"KEY": null}', b'{"KEY": {"ort-fp32": "fast"}}', b'{"KEY": 5}'],
    ids=repr,
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(measured: list[list[str]], cache: Path, content: bytes):
    doctor()
    (key,) = json.loads(cache.read_text())
    cache.write_bytes(content.replace(b'"KEY"', json.dumps(key).encode()))
    assert doctor().layer_ms == FIGURES
    assert len(measured) == 2
    assert json.loads(cache.read_text()) == {key: FIGURES}
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("in_the_way", ["file", "folder"])
def test_a_cache_that_cannot_be_written_is_no_error(
    measured: list[list[str]], cache: Path, capsys: pytest.CaptureFixture[str], in_the_way: str
):
    if in_the_way == "file":
        cache.parent.parent.write_text("a file where a folder should be")
    else:
        cache.mkdir(parents=True)
    for _ in range(2):
        assert doctor().layer_ms == FIGURES
    assert len(measured) == 2
    assert f"{cache}: not kept (" in capsys.readouterr().err


# What is recommended

READY = {"ort": None}
names = st.sampled_from(["ort", "openvino", "trt"])
milliseconds = st.floats(8, 12)  # so that many are about as fast as each other


def recommended(layer_ms: dict[str, float]) -> str:
    return diagnosis._recommendation(READY, None, layer_ms)


def test_a_precision_that_costs_more_must_be_worth_while_beside_the_one_that_costs_less():
    both = {"ort-fp32": 10.0, "openvino-fp32": 9.0, "openvino-bf16": 5.0}
    assert recommended(both).startswith("--engine openvino --precision bf16, 1.8 times as fast as openvino-fp32;")
    assert recommended(both | {"ort-int8": 4.8}).startswith("--engine openvino --precision bf16,")
    assert recommended(both | {"ort-int8": 4.0}).startswith("--engine ort --precision int8, 2.2 times")


@given(st.dictionaries(names, milliseconds, min_size=1), st.dictionaries(names, milliseconds))
def test_the_fastest_is_recommended_and_int8_only_where_it_is_worth_while(fp32: dict, int8: dict):
    text = recommended({f"{e}-fp32": ms for e, ms in fp32.items()} | {f"{e}-int8": ms for e, ms in int8.items()})
    _, engine, _, precision = text.replace(",", "").split()[:4]
    plain = min(fp32.values())
    if int8 and plain / min(int8.values()) > WORTH_WHILE:
        assert (precision, int8[engine]) == ("int8", min(int8.values()))
        assert f"{plain / min(int8.values()):.1f} times as fast as " in text
        assert "build checks that 99.0% of your labels" in text
    else:
        assert (precision, fp32[engine]) == ("fp32", plain)
        assert "times" not in text


def test_without_an_engine_one_is_to_be_installed():
    assert 'pip install "hadskip-export[ort]"' in diagnosis._recommendation({"ort": "needs it"}, None, None)


def test_what_was_not_measured_is_said():
    text = diagnosis._recommendation(READY, "needs torch; pip install it", None)
    assert text == "--engine ort --precision fp32 (nothing was measured: that needs torch; pip install it)"


def test_an_engine_without_right_answers_is_not_recommended():
    assert "no engine could be measured" in recommended({})
    assert "no engine could be measured" in recommended({"ort-int8": 1.0})


# The whole of it


def test_measuring_times_a_layer_of_every_engine_that_gives_right_answers(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The bundle is another one, and already built; what is measured is real."""
    written: list[tuple] = []

    def write(out: Path, config, plan: EnginePlan):
        written.append((config.num_layers, config.hidden_size, plan))
        shutil.copytree(bundle, out)
        if plan.precision == "bf16":
            raise EngineError("this chip computes bf16 as f32")
        wrong = plan.precision == "int8"
        return SimpleNamespace(parity="failed" if wrong else "passed", first_bad_piece="layer_01" if wrong else None)

    monkeypatch.setattr(random_bundle, "write_random_bundle", write)
    monkeypatch.setattr(diagnosis, "ROUNDS", 2)
    found = doctor()
    assert written == [
        (2, 768, EnginePlan(engine, precision, "gates"))
        for engine in RUN_HERE
        for precision in target_of(engine).precisions
    ]
    assert list(found.layer_ms) == [f"{engine}-fp32" for engine in RUN_HERE]
    assert min(found.layer_ms.values()) > 0
    assert found.recommendation in [f"--engine {engine} --precision fp32" for engine in RUN_HERE]
    said = capsys.readouterr().err
    assert "ort-int8: gives wrong answers on this machine, first at layer_01; left out" in said
    assert "openvino-bf16: this chip computes bf16 as f32; left out" in said


def test_an_engine_that_breaks_costs_no_other_its_figure(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One cannot be loaded by the process that times it, and that of another dies while it is timed."""
    monkeypatch.setattr(diagnosis, "ROUNDS", 2)

    def write(out: Path, config, plan: EnginePlan):
        shutil.copytree(bundle, out)
        if plan.tag == "ort-int8":
            (out / "manifest.json").unlink()
        return SimpleNamespace(parity="passed", first_bad_piece=None)

    def ask(system: systems.System, request: str, **arguments):
        if request == "pieces" and "openvino-fp32" in system._load["bundle"]:
            system._process.kill()
            system._process.wait()
        return really(system, request, **arguments)

    really = systems.System.ask
    monkeypatch.setattr(systems.System, "ask", ask)
    monkeypatch.setattr(random_bundle, "write_random_bundle", write)
    found = doctor()
    assert "ort-fp32" in found.layer_ms and not {"ort-int8", "openvino-fp32"} & set(found.layer_ms)
    said = capsys.readouterr().err
    assert "ort-int8: " in said and "not a bundle" in said
    assert "openvino-fp32: the benchmark's worker process died (pieces)" in said
    assert not cache.exists()  # what died may live the next time


def test_a_library_whose_own_libraries_are_missing_is_an_engine_that_is_lacking(monkeypatch: pytest.MonkeyPatch):
    def load(name: str):
        raise OSError("libcudart.so.13: cannot open shared object file\nsome more of it")

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(
        EngineError, match=r"^this needs torch, which lacks a library .*\(libcudart.so.13: .* file\); install that$"
    ):
        optional_import("torch", "train")


def test_the_command_prints_what_a_person_reads(measured):
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == text.diagnosis(doctor())
    for line in (
        "engine ort: ready", "training and build: ready", "ort-fp32: 10.00 ms for a BERT-base layer of 128 tokens",
        "recommended: --engine ort --precision int8, 2.5 times as fast as ort-fp32; build checks that 99.0% of your"
        " labels stay the same, besides what int8 changes of full BERT's, and else marks the engine as failed: build"
        " ort-fp32 then",
    ):  # fmt: skip
        assert line in result.stdout.splitlines()


def test_the_command_prints_json(measured):
    result = CliRunner().invoke(main, ["doctor", "--json", "-"])
    assert result.exit_code == 0
    plain, expected = json.loads(result.stdout), asdict(doctor())
    for about in (plain, expected):
        del about["environment"]["load"]
    assert plain == expected
    assert len(measured) == 1
    assert CliRunner().invoke(main, ["doctor", "--json", "-", "--fresh"]).exit_code == 0
    assert len(measured) == 2


def test_a_machine_without_an_engine_ends_with_exit_code_1(measured, monkeypatch: pytest.MonkeyPatch):
    def lacking(_: str) -> None:
        raise EngineError('needs onnxruntime; pip install "hadskip-export[ort]"')

    monkeypatch.setattr(diagnosis, "engine_class", lacking)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert 'engine ort: needs onnxruntime; pip install "hadskip-export[ort]"' in result.stdout.splitlines()
    assert "Error" not in result.stderr
    assert measured == []


@pytest.mark.parametrize("module", ["torch", "onnx", "transformers", "onnxscript"])
def test_a_machine_that_only_serves_is_well_and_not_measured(measured, monkeypatch: pytest.MonkeyPatch, module: str):
    find = diagnosis.importlib.util.find_spec
    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    found = doctor()
    assert found.healthy
    assert found.layer_ms is None
    assert measured == []
    assert f'training and build: needs {module}; pip install "hadskip-export[train]"' in text.diagnosis(found)


def test_the_function_is_a_function_every_time(measured):
    """A module of its name would take its place in the package when it is first imported."""
    for _ in range(2):
        assert hadskip_export.doctor().healthy
