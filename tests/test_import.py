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


def test_a_serving_machine_inspects_a_run_or_says_what_that_needs(bare: Path, run_folder: Path):
    done = run(bare, "inspect", run_folder)
    if done.returncode == 0:
        assert "1.5" in done.stdout
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("Error: "), done.stderr
        assert "hadskip-export[train]" in done.stderr


def test_in_the_runtime_one_engine_alone_imports_torch():
    files = (Path(hadskip_export.__file__).parent / "runtime").rglob("*.py")
    importing = {file for file in files if re.search(r"^\s*(import|from) torch\b", file.read_text(), re.MULTILINE)}
    assert importing and {file.parent.name for file in importing} == {"torch_cuda"}
