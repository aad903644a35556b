"""`build BUNDLE`: an engine more, checked, without torch; operating points; and whatever happens on the way, the bundle
stays one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from hadskip_export import build, validate
from hadskip_export.exporters import amend as adding
from hadskip_export.exporters import seal as sealing
from hadskip_export.exporters.amend import add_engine, add_points
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.routing.points import Point
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BudgetError, BundleError, EngineError
from hadskip_export.verification import parity
from tests.conftest import BF16, needs_bf16, sentences
from tests.exporters.changing import CUTS, add_to_weights, change_graph, copy_of, files_of

TEXTS = [text for text, _ in sentences(60, 5)]
ADDED = [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("ort", "int8")]
IN_BF16 = pytest.param("openvino-bf16", marks=[needs_bf16, pytest.mark.slow])
IN_INT8 = pytest.param("openvino-int8", marks=pytest.mark.slow)
MOVED = 5e-4  # of a probability; below it an answer has stayed
# An input alone is run by another engine there, whose states are bf16.
ALONE = {"openvino-bf16": 5e-3}


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    return copy_of(bundle, tmp_path)


@pytest.fixture(scope="module")
def full_house(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every engine that this machine can add, each in its fastest cut."""
    out = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("full_house") / "bundle"))
    for engine, precision in ADDED:
        if precision != "bf16" or BF16:
            assert build(out, engine=engine, precision=precision).parity == "passed"
    return out


# What is added


def test_engines_come_in_the_order_they_were_added_and_each_is_found_by_name(full_house: Path):
    opened = read_bundle(full_house)
    names = ["ort-fp32-gates", *(f"{e}-{p}-whole" for e, p in ADDED if p != "bf16" or BF16)]
    assert [info.name for info in opened.manifest.engines] == names
    assert opened.engine().name == opened.engine("ort").name == "ort-fp32-gates"
    assert opened.engine("openvino").name == opened.engine("openvino-fp32").name == "openvino-fp32-whole"
    for name in names:
        info = opened.engine(name)
        report = json.loads((full_house / "engines" / name / "report.json").read_text())
        assert (info.folder, info.parity) == (f"engines/{name}", "passed")
        assert report["first_bad_piece"] is None and info.chip and info.versions
        assert f"engines/{name}/report.json" in opened.manifest.files


def test_only_what_is_computed_otherwise_is_a_file_of_its_own(full_house: Path, bundle: Path):
    manifest = read_bundle(full_house).manifest
    for info in manifest.engines[1:]:
        tag = f"{info.engine}-{info.precision}"
        own = {piece: file for piece, file in info.files.items() if file != manifest.pieces.get(piece)}
        reduced = [*(f"layer_0{number}" for number in range(1, 5)), "full"] if info.precision == "int8" else []
        wholes = (
            {"whole": "model_int8"} if info.engine == "ort" else {n: f"{n}.{tag}" for n in ("whole", "whole_alone")}
        )
        assert own == {piece: f"model/{piece}.{tag}.onnx" for piece in reduced} | {
            piece: f"model/{stem}.onnx" for piece, stem in wholes.items()
        }
    before, after = files_of(bundle), files_of(full_house)
    assert {name for name in before if before[name] != after.get(name)} == {"manifest.json", "manifest.sha256"}


@pytest.mark.parametrize("engine", ["openvino-fp32", IN_BF16, IN_INT8, "ort-int8"])
def test_an_added_engine_answers_as_the_first_one_does(full_house: Path, engine: str):
    near = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.03}[engine.rpartition("-")[2]]
    with Predictor.load(full_house) as first, Predictor.load(full_house, engine=engine) as other:
        assert other.engine_info.name == f"{engine}-whole"
        for options in ({}, {"router": "full"}, {"gate_threshold": -1e9}):
            pairs = list(zip(first(TEXTS, **options), other(TEXTS, **options), strict=True))
            same = [(a, b) for a, b in pairs if a.layers == b.layers]
            assert len(same) >= (0.9 if near > 1e-5 else 1) * len(TEXTS)
            distances = [abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in same]
            assert max(distances) < near
            assert (max(distances) > 1e-5) == (near > 1e-5)  # it is another precision indeed
    assert validate(full_house, engine=engine).passed


def moved_by_batch_mates(bundle: Path, engine: str) -> tuple[int, float]:
    """(texts that take the same layers alone and in a batch, largest difference of a probability among them)."""
    with Predictor.load(bundle, engine=engine) as predictor:
        together, alone = predictor(TEXTS, batch_size=32), [predictor(text) for text in TEXTS]
    same = [(a, b) for a, b in zip(together, alone, strict=True) if a.layers == b.layers]
    return len(same), max(abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in same)


@pytest.mark.parametrize("engine", ["ort-fp32", "openvino-fp32", IN_BF16, IN_INT8])
def test_an_answer_does_not_depend_on_who_shares_the_batch(full_house: Path, engine: str):
    same, moved = moved_by_batch_mates(full_house, engine)
    assert same == len(TEXTS)
    assert moved < (1e-5 if engine.endswith("fp32") else ALONE.get(engine, MOVED))


@pytest.mark.parametrize("engine", ["openvino-fp32", IN_BF16, IN_INT8])
@pytest.mark.parametrize("cut", ["gates", "layers"])
def test_through_the_chain_not_even_below_fp32(mine: Path, engine: str, cut):
    name, _, precision = engine.rpartition("-")
    build(mine, engine=name, precision=precision, cut=cut)
    same, moved = moved_by_batch_mates(mine, engine)
    assert same == len(TEXTS) and moved < 1e-6


def test_onnxruntime_s_int8_depends_on_it(full_house: Path):
    """It scales activations by the tensor: the test above can tell."""
    assert moved_by_batch_mates(full_house, "ort-int8")[1] > MOVED


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_static_bundle_takes_engines_too(static_bundle: Path, tmp_path: Path, engine: str, cut):
    mine = copy_of(static_bundle, tmp_path)
    assert build(mine, engine=engine, cut=cut).parity == "passed"
    with Predictor.load(mine) as first, Predictor.load(mine, engine=f"{engine}-fp32-{cut}") as other:
        for size in (1, 16):
            for a, b in zip(first(TEXTS), other(TEXTS, batch_size=size), strict=True):
                assert a.layers == b.layers == (1, 3)
                assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
        assert [p.layers for p in other(TEXTS[:3], max_layers=1)] == [(1,)] * 3


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("ort", "fp32"), ("ort", "int8"), ("openvino", "fp32"), pytest.param("openvino", "int8", marks=pytest.mark.slow)],
)
def test_cuts_stand_beside_each_other_and_take_the_same_routes(mine: Path, engine: str, precision: str):
    for cut in CUTS:
        assert build(mine, engine=engine, precision=precision, cut=cut).parity == "passed"
    opened = read_bundle(mine)
    assert {info.name for info in opened.manifest.engines} >= {f"{engine}-{precision}-{cut}" for cut in CUTS}
    answers = {}
    for cut in CUTS:
        with Predictor.load(mine, engine=engine, precision=precision, cut=cut) as predictor:
            assert predictor.engine_info.cut == cut
            answers[cut] = [predictor(text) for text in TEXTS]
    for cut in ("layers", "whole"):
        pairs = list(zip(answers["gates"], answers[cut], strict=True))
        same = [(a, b) for a, b in pairs if a.layers == b.layers]
        assert len(same) >= (0.9 if precision == "int8" else 1) * len(TEXTS)
        for a, b in same:  # a rounding that falls the other way is worth one step of int8
            assert a.probabilities == pytest.approx(b.probabilities, abs=0.01 if precision == "int8" else 1e-5)


def test_an_engine_made_anew_takes_the_place_of_the_old_one(mine: Path):
    build(mine, engine="ort", precision="int8")
    build(mine, engine="openvino")
    before = read_bundle(mine)
    build(mine, engine="ort", precision="int8")
    after = read_bundle(mine)
    assert [info.name for info in after.manifest.engines] == [
        "ort-fp32-gates", "ort-int8-whole", "openvino-fp32-whole",
    ]  # fmt: skip
    old, new = before.engine("ort-int8").folder, after.engine("ort-int8").folder
    assert old != new and (mine / new).is_dir()
    assert not any(name.startswith(f"{old}/") for name in after.manifest.files)
    assert (mine / old / "report.json").exists()  # somebody may be serving it
    for _ in range(2):  # the file, and then the folder that was its own
        for place in (mine / old / "report.json", mine / old):
            if place.exists():
                os.utime(place, (0, time.time() - sealing.SERVED_SECONDS - 1))
        build(mine, engine="ort", cut="gates")
    assert not (mine / old).exists()


@pytest.mark.parametrize(
    ("engine", "precision", "cut"),
    [("ort", "fp32", "gates"), ("ort", "fp32", "whole"), ("ort", "int8", "layers"), ("openvino", "int8", "whole")]
    + [
        pytest.param(*kind, cut, marks=pytest.mark.slow)
        for kind in (("ort", "fp32"), ("ort", "int8"), ("openvino", "int8"))
        for cut in CUTS
    ],
)
def test_a_second_build_leaves_the_files_that_are_served_untouched(mine: Path, engine: str, precision: str, cut):
    def facts() -> dict:
        places = [mine / file for file in read_bundle(mine).engine(engine, precision, cut).files.values()]
        weights = list((mine / "model" / "weights").iterdir())
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in places + weights}

    build(mine, engine=engine, precision=precision, cut=cut)
    before, names = facts(), {name for name in files_of(mine) if name.startswith("model/")}
    build(mine, engine=engine, precision=precision, cut=cut)
    assert facts() == before
    assert {name for name in files_of(mine) if name.startswith("model/")} == names


def test_a_damaged_engine_that_is_made_anew_is_sound_and_nothing_is_written_over(mine: Path):
    """Its files had the names that a new one's would have."""
    build(mine, engine="ort", precision="int8", cut="gates")
    file = mine / read_bundle(mine).engine("ort-int8").files["layer_02"]
    change_graph(file, add_to_weights(0.5))
    damaged = file.read_bytes()
    assert not validate(mine, engine="ort-int8").passed
    assert build(mine, engine="ort", precision="int8", cut="gates").parity == "passed"
    assert read_bundle(mine).engine("ort-int8").files["layer_02"] == "model/layer_02.ort-int8-2.onnx"
    assert validate(mine, engine="ort-int8").passed and file.read_bytes() == damaged


@pytest.mark.slow
def test_a_predictor_in_service_goes_on_while_an_engine_is_made_anew(mine: Path):
    build(mine, engine="openvino", precision="int8")
    with Predictor.load(mine, engine="openvino") as predictor:
        before = predictor(TEXTS)
        for _ in range(2):  # the second one finds it replaced
            build(mine, engine="openvino", precision="int8")
        assert predictor(TEXTS) == before
        assert predictor(TEXTS[0], router="full").layers == (1, 2, 3, 4)  # loaded only now


def test_it_needs_no_torch(mine: Path):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # how Python marks a module that must not be imported
from hadskip_export import build
for engine, precision, cut in (("openvino", "fp32", "whole"), ("openvino", "int8", "layers"), ("ort", "int8", "whole")):
    print(build({str(mine)!r}, engine=engine, precision=precision, cut=cut).parity)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passed"] * 3


# Operating points


def point(budget: float, threshold: float) -> Point:
    return Point(budget, (threshold,) * 4, "60 texts of mine.csv", budget, (((1, 2), 0.5),), 0.75, 0.8)


def test_points_are_added_in_order_each_in_the_place_of_its_budget(mine: Path):
    first = read_bundle(mine).manifest
    add_points(mine, [point(3, -1.0), point(1, 1.0)])
    add_points(mine, [point(3, -2.0)])
    after = read_bundle(mine).manifest
    assert after.points == (point(1, 1.0), first.points[0], point(3, -2.0))
    assert (after.default_point, after.default_budget) == (first.default_point, 2.0)
    assert replace(after, points=first.points) == first


def test_calls_at_a_point_that_was_added_are_those_at_its_thresholds(mine: Path):
    build(mine, engine="openvino")
    add_points(mine, [point(3, -1.5), point(1, 1.5)])
    for engine in ("ort", "openvino"):
        with Predictor.load(mine, engine=engine) as predictor:
            for budget, threshold in ((3, -1.5), (1, 1.5), (1.5, 0.75), (2, 0.0)):
                at_budget = [p.layers for p in predictor(TEXTS, budget=budget)]
                assert at_budget == [p.layers for p in predictor(TEXTS, gate_threshold=threshold)]
            with pytest.raises(BudgetError, match=r"budget 3\.5: .*operating points for 1, 2, 3"):
                predictor(TEXTS, budget=3.5)


def test_the_default_point_can_be_met_anew_and_engines_stay(mine: Path):
    add_points(mine, [point(2, 0.5)])
    manifest = read_bundle(mine).manifest
    assert manifest.default_point == point(2, 0.5)
    with Predictor.load(mine) as predictor:
        assert [p.layers for p in predictor(TEXTS)] == [p.layers for p in predictor(TEXTS, gate_threshold=0.5)]


def test_points_that_do_not_fit_make_no_bundle_that_is_refused(mine: Path):
    before = files_of(mine)
    with pytest.raises(BundleError, match="threshold for each of 4 layers"):
        add_points(mine, [replace(point(3, 0.0), thresholds=(0.0,) * 3)])
    assert files_of(mine) == before


def test_nobody_adds_points_while_somebody_else_adds(mine: Path):
    with filelock.FileLock(mine / ".lock"), pytest.raises(BundleError, match="another process is adding"):
        add_points(mine, [point(3, 0.0)])


# What goes wrong


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, BundleError, "--engine: .* is a bundle; say which engine to add"),
        ({"engine": "abacus"}, EngineError, "--engine abacus: not known"),
        ({"engine": "openvino", "precision": "int7"}, EngineError, "--precision int7: not to be had with openvino"),
        ({"engine": "ort", "precision": "bf16"}, EngineError, "--precision bf16: not to be had with ort"),
        ({"engine": "openvino", "cut": "fused"}, EngineError, "--cut fused: not to be had with openvino; there are ga"),
        ({"out": "somewhere"}, BundleError, "--out: .* is a bundle"),
        ({"budget": 2}, BundleError, "--budget: .* is a bundle"),
        ({"golden": "texts.txt"}, BundleError, "--golden: .* is a bundle"),
        ({"full": False}, BundleError, "--no-full: .* is a bundle"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused_and_nothing_changes(mine: Path, options, error, message: str):
    before = files_of(mine)
    with pytest.raises(error, match=message):
        build(mine, **options)
    assert files_of(mine) == before


def test_a_damaged_bundle_is_refused(mine: Path):
    (mine / "model" / "head.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"head\.onnx"):
        build(mine, engine="openvino")


def test_without_onnxruntime_there_is_nothing_to_compare_with(mine: Path, monkeypatch: pytest.MonkeyPatch):
    before = files_of(mine)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"hadskip-export\[ort\]"):
        build(mine, engine="openvino")
    assert files_of(mine) == before


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("the whole graph", OSError(28, "No space left")),
        ("compare", EngineError("no")),
        ("amend", OSError(28, "No space left")),
        ("write report", KeyboardInterrupt()),
        *(
            pytest.param(where, error, marks=pytest.mark.slow)
            for where in ("the whole graph", "compare", "amend", "write report")
            for error in (EngineError("still no"), OSError(28, "Still no space left"), KeyboardInterrupt("still"))
        ),
    ],
    ids=str,
)
def test_nothing_is_left_of_an_engine_that_was_not_finished(mine: Path, monkeypatch, where: str, error):
    from hadskip_export.exporters.targets import base

    before = files_of(mine)

    def fail(*_, **__):
        raise error

    module, name = {
        "compare": (adding, "compare"), "amend": (adding, "amend"), "write report": (adding.engines, "_write_report"),
        "the whole graph": (base, "whole"),
    }[where]  # fmt: skip
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(type(error)):
        add_engine(mine, EnginePlan("openvino", "int8", "whole"))
    assert files_of(mine) == before
    assert [folder.name for folder in (mine / "engines").iterdir()] == ["ort-fp32-gates"]
    monkeypatch.undo()
    with Predictor.load(mine) as predictor:
        assert predictor(TEXTS[0]).label
    assert build(mine, engine="openvino", precision="int8").parity == "passed"


def test_an_engine_that_is_served_survives_that_its_successor_fails(mine: Path, monkeypatch: pytest.MonkeyPatch):
    build(mine, engine="ort", precision="int8")
    before = files_of(mine)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adding, "amend", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(mine, engine="ort", precision="int8")
    assert files_of(mine) == before
    assert validate(mine, engine="ort-int8").passed


def test_an_engine_that_misses_parity_is_there_and_marked(mine: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setitem(parity.PIECE_TOLERANCE, "head", -1.0)
        report = build(mine, engine="openvino")
    assert (report.parity, report.first_bad_piece) == ("failed", "head")
    with pytest.raises(BundleError, match="openvino-fp32-whole failed its parity check at head"):
        Predictor.load(mine, engine="openvino")
    Predictor.load(mine).close()  # the others are as they were


def test_two_at_once_are_one_after_the_other(mine: Path):
    with filelock.FileLock(mine / ".lock"), pytest.raises(BundleError, match="another process is adding"):
        build(mine, engine="openvino")
    assert build(mine, engine="openvino").parity == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 4))
def test_whoever_is_killed_while_the_manifest_changes_leaves_a_bundle_that_loads(mine: Path, step: int):
    """Killed for real, before the digest changes, before the manifest does, or not at all."""
    build(mine, engine="openvino", precision="int8")
    before = read_bundle(mine).engine("openvino").folder
    code = f"""
import os, signal
from hadskip_export import build
left = {step}
real = os.replace
def replace(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(source, target)
os.replace = replace
build({str(mine)!r}, engine="openvino", precision="int8")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if step < 3 else 0), done.stderr
    opened = read_bundle(mine)
    assert (opened.engine("openvino").folder == before) == (step < 3)
    with Predictor.load(mine, engine="openvino") as predictor:
        predictor(TEXTS[:3])
    build(mine, engine="openvino", cut="gates")  # engines can be added as before, and what was left is gone at once
    assert not list(mine.glob(".*.part")) and not (mine / ".adding").exists()
    named = {info.folder for info in read_bundle(mine).manifest.engines}
    left = {folder.relative_to(mine).as_posix() for folder in (mine / "engines").iterdir()}
    assert left == named | ({before} if step == 3 else set())  # that one may still be served


def test_a_reader_in_between_finds_one_bundle_or_the_other(mine: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    real = os.replace

    def watched(source, target):
        seen.append(len(read_bundle(mine).manifest.engines))
        real(source, target)
        seen.append(len(read_bundle(mine).manifest.engines))

    monkeypatch.setattr(os, "replace", watched)
    build(mine, engine="openvino")
    # The list of what was there before; the digest of both manifests; the manifest.
    assert seen == [1, 1, 1, 1, 1, 2]
