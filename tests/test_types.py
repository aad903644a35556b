"""What an editor and mypy see of the package: signatures and results, not `Any`."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import hadskip_export

ROOT = Path(__file__).parents[1]


def checked(code: str, folder: Path) -> list[str]:
    """What mypy says about a file of a user's, who is strict."""
    file = folder / "users.py"
    file.write_text(textwrap.dedent(code))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "pyproject.toml"]
    done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
    assert not done.stderr
    return [re.sub(r"^.*users\.py:", "", line) for line in done.stdout.splitlines() if "users.py" in line]


def test_every_kind_of_input_has_its_type(tmp_path: Path):
    said = checked(
        """\
        from collections.abc import Iterable, Sequence
        import numpy as np
        from hadskip_export.runtime import Prediction, Predictor

        def ask(predictor: Predictor, several: Sequence[str], stream: Iterable[str], pairs: Iterable[tuple[str, str]]):
            one: Prediction = predictor("a")
            one = predictor(("a", "b"))
            one = predictor({"input_ids": [1, 2], "token_type_ids": np.array([0, 0])})
            many: list[Prediction] = predictor(["a", "b"])
            many = predictor(["a", ("a", "b")])
            many = predictor(several, batch_size=16, budget=3)
            many = predictor(stream)
            many = predictor(pairs)
            many = predictor(text for text in several)
            many = predictor(np.array(["a"]))
            predictor(5)
            predictor("a", batch_size="8")
            predictor("a", max_layers=2.5)
            predictor("a", router="dice")
        """,
        tmp_path,
    )
    wrong = [int(line.partition(":")[0]) for line in said if " error: " in line and "annotation" not in line]
    assert wrong == [16, 17, 18, 19], said


RESULTS = {
    "train": "Summary",
    "build": "ParityReport | None",
    "validate": "Validation",
    "inspect": "Inspection",
    "bench": "Benchmark",
    "estimate": "Estimate",
    "compare": "Comparison",
    "doctor": "Diagnosis",
    "demo": "Demo",
    "calibrate": "Calibration",
    "predict": "Iterator[str]",
    "serve": "None",
    "optimize": "Optimization",
    "push": "Pushed",
    "score": "Scored",
    "triton": "Path",
    "pull": "Manifest",
}


def test_every_function_of_the_package_has_its_signature_and_result(tmp_path: Path):
    assert set(RESULTS) == set(hadskip_export.__all__) - {"__version__"}
    asks = "\n".join(f"reveal_type(hadskip_export.{name})" for name in RESULTS)
    said = checked(f"import hadskip_export\n{asks}\n", tmp_path)
    assert len(said) == len(RESULTS)
    for line, (name, result) in zip(said, RESULTS.items(), strict=True):
        shown = re.sub(r"\b\w+\.", "", line)
        returned = r'\)"' if result == "None" else rf"\) -> .*{re.escape(result)}"  # mypy leaves None out
        assert re.search(rf'"def \(.*{returned}', shown), (name, line)
        assert "Any" not in shown.partition(") -> ")[2], (name, line)


def test_dir_has_the_functions_without_importing_them():
    code = "import sys, hadskip_export; print(*dir(hadskip_export)); print('hadskip_export.commands' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()
    assert set(hadskip_export.__all__) <= set(names.split())
    assert imported == "False"
