"""Train a BERT-type classifier to skip the layers an input does not need, and serve it so that they are not computed.

Every command of `hadskip-export` is a function here, imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors; to import them all would bring torch
    from hadskip_export.commands.bench import bench
    from hadskip_export.commands.build import build
    from hadskip_export.commands.calibrate import calibrate
    from hadskip_export.commands.compare import compare
    from hadskip_export.commands.demo import demo
    from hadskip_export.commands.doctor import doctor
    from hadskip_export.commands.estimate import estimate
    from hadskip_export.commands.inspect import inspect
    from hadskip_export.commands.optimize import optimize
    from hadskip_export.commands.predict import predict
    from hadskip_export.commands.pull import pull
    from hadskip_export.commands.push import push
    from hadskip_export.commands.score import score
    from hadskip_export.commands.serve import serve
    from hadskip_export.commands.train import train
    from hadskip_export.commands.triton import triton
    from hadskip_export.commands.validate import validate

__version__ = "0.2.0.dev0"

__all__ = [
    "__version__",
    "bench",
    "build",
    "calibrate",
    "compare",
    "demo",
    "doctor",
    "estimate",
    "inspect",
    "optimize",
    "predict",
    "pull",
    "push",
    "score",
    "serve",
    "train",
    "triton",
    "validate",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"hadskip_export.commands.{name}"), name)
    except ModuleNotFoundError as error:
        from hadskip_export.support.errors import EngineError

        raise EngineError(f'{name} needs {error.name}; pip install "hadskip-export[train]"') from error
