"""What Triton reads of a model: its configuration, the names of its labels, the program that runs, and the bundle.

REPOSITORY/NAME/  config.pbtxt  labels.txt
                  1/  model.py  bundle/
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hadskip_export.data.problems import MULTI, SINGLE, Problem
from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, Bundle
from hadskip_export.runtime.choices import ROUTERS, RouterName
from hadskip_export.runtime.manifest import FULL
from hadskip_export.runtime.signatures import SIGNATURE
from hadskip_export.support.errors import BudgetError, BundleError
from hadskip_export.support.files import new_folder
from hadskip_export.support.values import real_number, whole_number

TEXT, PAIR = "text", "pair"  # what a model takes
VERSION, BUNDLE, LABELS = "1", "bundle", "labels.txt"
PROGRAM = '''"""Triton's Python backend runs this; its Python needs hadskip-export."""

from hadskip_export.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# One copy: it computes with all threads that it may use, and on a GPU as its engine does.
CONFIG = """backend: "python"
max_batch_size: {max_batch}
input [
  {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "pair" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
{outputs}
]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
{parameters}"""


@dataclass(frozen=True)
class Settings:
    """How the bundle is loaded there, see `commands.triton`. `engine`: all of its name."""

    engine: str
    threads: int | None = None
    budget: float | None = None
    router: RouterName = "gates"
    max_batch: int = 32

    def parameters(self) -> dict[str, str]:
        """As Triton hands them on."""
        given = {"engine": self.engine, "threads": self.threads, "budget": self.budget, "router": self.router}
        return {name: str(value) for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Settings":
        threads, budget = parameters.get("threads"), parameters.get("budget")
        return cls(
            parameters["engine"],
            None if threads is None else int(threads),
            None if budget is None else float(budget),
            "full" if parameters.get("router") == "full" else "gates",
        )


def outputs_of(problem: Problem) -> dict[str, tuple[str, int]]:
    """Name -> type and size of what a model gives for each input, by what it answers."""
    labels = len(problem.labels)
    answers = {
        SINGLE: {"label": ("STRING", 1), "probabilities": ("FP32", labels)},
        MULTI: {"given": ("BOOL", labels), "probabilities": ("FP32", labels)},
    }.get(problem.type, {"score": ("FP32", 1)})
    return answers | {"layers_run": ("INT32", 1), "truncated": ("BOOL", 1)}


def write_model(bundle: Bundle, repository: Path, name: str, settings: Settings, *, force: bool = False) -> Path:
    """See `commands.triton`."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise BundleError(f"--name {name!r}: expected letters, digits, '.', '-' and '_'; choose another")
    _check(bundle, settings)
    target = repository / name
    if target.exists():
        if not force:
            raise BundleError(f"{target}: exists already; choose another --name, or replace it with --force")
        if not (target / VERSION / BUNDLE / MANIFEST).is_file():
            raise BundleError(f"{target}: not a model that this command wrote, and --force replaces nothing else")
    problem = bundle.manifest.model.problem
    with new_folder(target, replace=force) as folder:
        (folder / "config.pbtxt").write_text(_config(problem, settings), encoding="utf-8")
        (folder / LABELS).write_text("".join(f"{label}\n" for label in problem.labels), encoding="utf-8")
        (folder / VERSION).mkdir()
        (folder / VERSION / "model.py").write_text(PROGRAM)
        for file in (MANIFEST, DIGEST, *bundle.manifest.files, SIGNATURE):
            if file != SIGNATURE or bundle.file(file).is_file():
                place = folder / VERSION / BUNDLE / file
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.file(file), place)
    return target


def _check(bundle: Bundle, settings: Settings) -> None:
    """
    Raises:
        BudgetError, BundleError: what Triton would find out when it loads the model.
    """
    manifest, info = bundle.manifest, bundle.engine(settings.engine)
    if info.parity == "failed":
        raise BundleError(
            f"{bundle.path}: {info.name} failed its parity check at {info.first_bad_piece}; build it again"
        )
    if settings.router not in ROUTERS:
        raise BudgetError(f"router={settings.router!r}: expected {' or '.join(map(repr, ROUTERS))}")
    whole_number("--max-batch", settings.max_batch)
    if settings.threads is not None:
        whole_number("--threads", settings.threads)
    if any(len(label.splitlines()) != 1 for label in manifest.model.labels):
        raise BundleError(f"{bundle.path}: a label of several lines, and Triton reads labels from lines; rename it")
    if settings.router == "full" and FULL not in info.files:
        raise BundleError(f"{bundle.path}: carries no full model (built with --no-full); build it again")
    if settings.budget is None:
        return
    if not manifest.router.decides or settings.router == "full":
        raise BudgetError(f"--budget {settings.budget:g}: there are no gates to ask; leave it out")
    budget = resolve_budget(real_number("--budget", settings.budget), manifest.model.layers)
    manifest.thresholds_at(budget)


def _config(problem: Problem, settings: Settings) -> str:
    outputs = []
    for name, (kind, size) in outputs_of(problem).items():
        labels = f' label_filename: "{LABELS}"' if name == "probabilities" else ""
        outputs.append(f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {size} ]{labels} }}')
    parameters = "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
        for name, value in settings.parameters().items()
    )
    return CONFIG.format(max_batch=settings.max_batch, outputs=",\n".join(outputs), parameters=parameters)
