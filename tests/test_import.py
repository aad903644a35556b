"""What importing and installing brings along, and what it must not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import hadskip_export
from hadskip_export import inspect
from hadskip_export.report import text
from hadskip_export.runtime import Predictor
from tests.conftest import sentences

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "onnx", "pandas", "safetensors", "onnxscript", "matplotlib")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "hadskip_export", "hadskip_export.runtime", "hadskip_export.cli", "hadskip_export.commands.inspect",
        "hadskip_export.commands.validate", "hadskip_export.commands.bench", "hadskip_export.runtime.engines.ort",
        "hadskip_export.runtime.engines.torch_cuda", "hadskip_export.commands.calibrate",
        "hadskip_export.commands.predict", "hadskip_export.commands.doctor", "hadskip_export.commands.demo",
        "hadskip_export.commands.serve", "hadskip_export.comparison.entrants",
        "hadskip_export.report.text", "hadskip_export.report.plain",
    ],
)  # fmt: skip
def test_serving_imports_nothing_heavy(module: str):
    done = python(f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) & {*HEAVY, "onnxruntime"} == set()


def test_predicting_imports_nothing_heavy(bundle: Path):
    code = """
import json, sys
from hadskip_export.runtime import Predictor
with Predictor.load(sys.argv[1]) as predictor:
    predictor(["a good film", ("a", "b")])
print(json.dumps(sorted(sys.modules)))
"""
    done = python(code, str(bundle))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) & set(HEAVY) == set()


def test_every_public_name_is_there():
    for name in hadskip_export.__all__:
        assert name == "__version__" or callable(getattr(hadskip_export, name))
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        hadskip_export.missing  # noqa: B018
    import hadskip_export.runtime as runtime

    assert all(hasattr(runtime, name) for name in runtime.__all__)


def test_every_module_imports_and_none_hides_a_function_of_the_package():
    done = python(
        "import importlib, pkgutil, hadskip_export\n"
        "for module in pkgutil.walk_packages(hadskip_export.__path__, 'hadskip_export.'):\n"
        "    importlib.import_module(module.name)\n"
        "from hadskip_export import *\n"
        "assert all(callable(f) for f in (build, train, bench, validate, predict, inspect, demo))"
    )
    assert done.returncode == 0, done.stderr


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxruntime":
            raise ImportError("blocked: libonnxruntime.so: cannot open shared object file")
sys.meta_path.insert(0, Blocker())
"""


def test_without_onnxruntime_the_message_names_both_extras(bundle: Path):
    code = BLOCKED + (
        "from hadskip_export.runtime import EngineError, Predictor\n"
        "try:\n    Predictor.load(sys.argv[1])\n"
        "except EngineError as error:\n    print(error)\n"
    )
    done = python(code, str(bundle))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    for part in ("onnxruntime", "blocked", "hadskip-export[ort]", "hadskip-export[ort-gpu]"):
        assert part in done.stdout


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_without_onnxruntime_a_command_ends_with_one_line(bundle: Path, command: str):
    code = BLOCKED + "from hadskip_export.cli import main\nmain()"
    done = python(code, command, str(bundle), *(["good"] if command == "predict" else []))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "hadskip-export[ort]" in done.stderr


def test_a_broken_onnxruntime_is_told_from_a_missing_one(bundle: Path, tmp_path: Path):
    """Uninstalling one of the two packages takes files of the other: a package without its library is left."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from hadskip_export.runtime import EngineError, Predictor\n"
        "try:\n    Predictor.load(sys.argv[1])\n"
        "except EngineError as error:\n    print(error)\n"
    )
    done = python(code, str(bundle), str(tmp_path))
    assert done.returncode == 0, done.stderr
    for part in ("broken", "hadskip-export[ort]", "hadskip-export[ort-gpu]"):
        assert part in done.stdout


# A machine that only serves


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with `hadskip-export[ort]` and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    copy = folder / "source"  # building in the repository would leave its build folder there
    keep = ("hadskip_export", "pyproject.toml", "LICENSE", "README.md", "constraints.txt")
    for part in (ROOT / name for name in keep):
        if part.is_dir():
            shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif part.is_file():
            shutil.copy(part, copy / part.name)
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = ["-c", str(copy / "constraints.txt")] if (copy / "constraints.txt").is_file() else []
    command = [programs / "python", "-m", "pip", "install", "--quiet", *constraints, f"{copy}[ort]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return programs


def run(bare: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `hadskip-export` there, away from this repository."""
    command = [bare / "hadskip-export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bare)


@pytest.mark.parametrize("module", HEAVY)
def test_a_serving_machine_has_nothing_heavy(bare: Path, module: str):
    done = subprocess.run(
        [bare / "python", "-c", f"import {module}"], capture_output=True, text=True, cwd=bare, check=False
    )
    assert "ModuleNotFoundError" in done.stderr


def test_installing_claims_only_its_own_name(bare: Path):
    code = (
        "import importlib.metadata as m; print({f.parts[0] for f in m.files('hadskip-export') if f.parts[0] != '..'})"
    )
    done = subprocess.run([bare / "python", "-c", code], capture_output=True, text=True, cwd=bare, check=True)
    assert {name.partition("-")[0] for name in ast.literal_eval(done.stdout)} == {"hadskip_export"}


def test_a_serving_machine_answers_as_this_one(bare: Path, bundle: Path, tmp_path: Path):
    texts = [text for text, _ in sentences(20, 11)]
    with Predictor.load(bundle) as predictor:
        expected = predictor(texts)
    done = run(bare, "predict", bundle, *texts)
    assert done.returncode == 0, done.stderr
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["label"], tuple(line["layers"])) for line in got] == [(p.label, p.layers) for p in expected]
    for line, prediction in zip(got, expected, strict=True):
        assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_serving_machine_validates_and_inspects(bare: Path, bundle: Path):
    done = run(bare, "validate", bundle)
    assert done.returncode == 0, done.stderr
    assert "parity passed" in done.stdout
    done = run(bare, "inspect", bundle)
    assert done.returncode == 0, done.stderr
    assert "4 layers of 32" in done.stdout


def test_a_serving_machine_measures(bare: Path, bundle: Path):
    done = run(bare, "bench", bundle, "--batch", 64)
    assert done.returncode == 0, done.stderr
    assert "speedup" in done.stdout


def test_a_serving_machine_says_what_training_needs(bare: Path, tmp_path: Path, csv_files, run_folder: Path):
    out = tmp_path / "out"
    train = ("train", "--model", "m", "--budget", 2, "--train", csv_files[0], "--eval", csv_files[1], "--out", out)
    for arguments in (train, ("build", run_folder, "--out", out)):
        done = run(bare, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "hadskip-export[train]" in done.stderr
        assert not out.exists()


def test_a_serving_machine_inspects_a_run(bare: Path, run_folder: Path):
    done = run(bare, "inspect", run_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == text.inspection(inspect(run_folder))


def test_a_serving_machine_sets_operating_points(bare: Path, bundle: Path, csv_files, tmp_path: Path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    done = run(bare, "calibrate", copy, "--data", csv_files[1], "--budget", 3, "--write")
    assert done.returncode == 0, done.stderr
    done = run(bare, "predict", copy, "--input", csv_files[1], "--budget", 3)
    assert done.returncode == 0, done.stderr
    layers = [len(json.loads(line)["layers"]) for line in done.stdout.splitlines()]
    assert sum(layers) / len(layers) == pytest.approx(3, abs=0.1)


# Rooms


PACKAGE = Path(hadskip_export.__file__).parent
# Who is above whom: a room imports rooms of lower floors.
FLOORS = (
    {"support", "data", "routing"},
    {"modeling", "runtime"},
    {"trainers", "exporters", "verification", "benchmark", "report", "serving", "bulk"},
    {"tuning", "comparison"},
    {"commands"},
    {"cli"},
)
# Rooms of one floor that build on each other, in one direction.
SIDEWAYS = {
    ("benchmark", "exporters"),  # a bundle of random weights
    ("benchmark", "verification"),  # and whether it passed
    ("exporters", "verification"),  # what is built is checked
    ("trainers", "verification"),  # and what is trained from
    ("data", "routing"),  # a run's routes and budgets
    ("data", "support"),
    ("routing", "support"),
}


def only_for_types(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING`."""
    tests = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {inner for test in tests for statement in test.body for inner in ast.walk(statement)}


def modules_of(node: ast.AST) -> list[str]:
    """The modules that a statement imports, or names in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports of this package say where from"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(file: Path, lazy: bool = True) -> set[str]:
    """What a file imports when it is run, `lazy`: or by a function of it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = only_for_types(tree)
    if not lazy:
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        left_out |= {inner for function in functions for inner in ast.walk(function)}
    return {name for node in ast.walk(tree) if node not in left_out for name in modules_of(node)}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.fixture(scope="module")
def doors() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) -> the files that do, imports inside functions too."""
    found: dict[tuple[str, str], set[str]] = {}
    rooms = set().union(*FLOORS)
    for file in PACKAGE.rglob("*.py"):
        for name in imports(file):
            package, *parts = name.split(".")
            if package == "hadskip_export" and parts and parts[0] in rooms - {room_of(file)}:
                found.setdefault((room_of(file), parts[0]), set()).add(file.relative_to(PACKAGE).as_posix())
    return found


def test_every_room_has_its_floor():
    assert {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"} == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


def test_rooms_import_only_downwards(doors: dict[tuple[str, str], set[str]]):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms} | {"__init__": len(FLOORS)}
    wrong = {pair: files for pair, files in doors.items() if floor[pair[0]] <= floor[pair[1]] and pair not in SIDEWAYS}
    assert wrong == {}
    assert doors.keys() >= SIDEWAYS  # none that nobody goes any more


def test_rooms_of_one_floor_go_round_in_no_circle():
    reached = set(SIDEWAYS)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    assert not {pair for pair in reached if pair[0] == pair[1]}


@pytest.mark.parametrize(
    ("room", "other"),
    [("runtime", "modeling"), ("modeling", "runtime"), ("exporters", "trainers"), ("trainers", "exporters")],
)
def test_what_passes_between_these_rooms_is_a_file(doors: dict[tuple[str, str], set[str]], room: str, other: str):
    """A bundle, or a run."""
    assert doors.get((room, other), set()) == set()


def test_what_serves_imports_nothing_heavy_even_if_it_is_installed():
    """Imports at module level; one engine is torch's, and the runtime loads it when a bundle asks for it."""
    heavy: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        if room_of(file) in ("runtime", "routing", "data", "support"):
            names = {name.split(".")[0] for name in imports(file, lazy=False)} & {*HEAVY, "onnxruntime", "openvino"}
            for name in names:
                heavy.setdefault(name, set()).add(file.parent.name)
    assert heavy == {"torch": {"torch_cuda"}, "safetensors": {"torch_cuda"}}


def test_in_the_runtime_one_engine_alone_imports_torch():
    importing = {
        file
        for file in (PACKAGE / "runtime").rglob("*.py")
        if any(name.split(".")[0] == "torch" for name in imports(file))
    }
    assert importing and {file.parent.name for file in importing} == {"torch_cuda"}


def test_a_serving_machine_installs_the_versions_that_were_tested():
    """`make lock` was run after the last change; every version has hashes."""
    root = PACKAGE.parent
    tested = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    locked = re.findall(r"^(\S+)==([^\s;]+)(.*?)(?=^\S|\Z)", (root / "requirements-serve.txt").read_text(), re.M | re.S)
    assert {"numpy", "tokenizers", "msgspec", "click", "filelock", "onnxruntime"} <= {name for name, _, _ in locked}
    for name, version, rest in locked:
        assert tested.get(name, version) == version and "--hash=sha256:" in rest, name
