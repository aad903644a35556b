"""What somebody would run instead: the same kind of classifier, every layer of it, as another library serves it. Each
library has an environment of its own, made when it is first asked for."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hadskip_export.benchmark.race import Entered
from hadskip_export.benchmark.systems import Process
from hadskip_export.data.problems import numbered
from hadskip_export.runtime.manifest import ModelInfo
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.cpus import usable_cpus
from hadskip_export.support.errors import DataError, EngineError, HadskipError
from hadskip_export.support.files import caches, new_folder
from hadskip_export.support.progress import say

OUTSIDE = Path(__file__).parent / "outside"
# name -> what its environment has; see `outside.worker` for what it does there.
LIBRARIES = {
    "optimum": "optimum.txt",
    "optimum-int8": "optimum.txt",
    "torch-compile": "torch.txt",
    "openvino-full": "openvino.txt",
}


@contextmanager
def loaded_library(name: str, folder: Path, like: ModelInfo, texts: Sequence[Text], place: Path) -> Iterator[Entered]:
    """
    Args:
        name: one of `LIBRARIES`.
        folder: a fine-tuned classifier, as `transformers` saves it.
        like: whose labels and length of texts it is to share.
        place: where the library may write.

    Raises:
        DataError: a classifier of other labels.
        EngineError: the environment cannot be made, or the library cannot serve the classifier.
    """
    asked = f"--against {name}:{folder}"
    python = _environment(OUTSIDE / LIBRARIES[name])
    export: dict[str, Any] = {"library": name, "folder": str(folder.resolve()), "place": str(place)}
    load = export | {"texts": list(texts), "max_length": like.max_length, "threads": usable_cpus()}
    command, variables = [str(python), str(OUTSIDE / "worker.py")], _variables()
    say(f"{asked}: exporting and loading it")
    with ExitStack() as stack:
        try:
            with Process([*command, "export"], variables, export):
                pass  # in a process of its own, for what that takes is not what serving takes
            process = stack.enter_context(Process([*command, "load"], variables, load))
        except HadskipError as error:
            raise EngineError(f"{asked}: {error}") from error
        found = process.loaded
        theirs, ours = numbered(found["labels"]), numbered(like.labels)
        kind = found["problem_type"] or like.problem_type
        if kind != like.problem_type or sorted(theirs) != sorted(ours):
            raise DataError(
                f"{asked}: answers {', '.join(theirs)} ({kind}), and the bundle {', '.join(like.labels)}"
                f" ({like.problem_type})"
            )
        columns = tuple(map(theirs.index, ours))
        yield Entered(f"{name}:{folder.name}", found["about"], process, found["disk_mb"], columns)


def _environment(requirements: Path) -> Path:
    """The Python of an environment that has what a file names. It stays, and another file is another one.

    Raises:
        EngineError: pip cannot make it.
    """
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = caches() / "hadskip-export" / "environments" / f"{requirements.stem}-{wanted}"
    python = Path("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / python).exists():
        say(f"{folder}: an environment for {requirements.stem}, some gigabytes to fetch and unpack")
        with new_folder(folder) as part:
            _run(requirements, Path(sys.executable), "venv", str(part))
            _run(requirements, part / python, "pip", "install", "--quiet", "-r", str(requirements))
    return folder / python


def _run(requirements: Path, python: Path, module: str, *arguments: str) -> None:
    command = [str(python), "-P", "-m", module, *arguments]  # -P: the current folder may have a pip.py
    done = subprocess.run(
        command, env=_variables(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        errors = [line for line in said if line.startswith("ERROR:")] or said
        raise EngineError(f"no environment with {requirements}: {module} says {errors[-1].removeprefix('ERROR: ')}")


def _variables() -> dict[str, str]:
    """Nothing of this environment's packages, no hub, for what is compared is on this disk, and no reports home."""
    without = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    return kept | quiet | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "PYTHONSAFEPATH": ""}
