"""Train a BERT-type classifier to skip the layers an input does not need, and serve it so that they are not computed.

Every command of `hadskip-export` is a function here, imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_FUNCTIONS = {
    "train": "hadskip_export.commands.train",
    "build": "hadskip_export.commands.build",
    "validate": "hadskip_export.commands.validate",
    "inspect": "hadskip_export.commands.inspect",
    "bench": "hadskip_export.commands.bench",
    "estimate": "hadskip_export.commands.estimate",
    "doctor": "hadskip_export.commands.doctor",
    "demo": "hadskip_export.commands.demo",
    "predict": "hadskip_export.commands.predict",
    "calibrate": "hadskip_export.commands.calibrate",
}

__all__ = ["__version__", *_FUNCTIONS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        try:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        except ModuleNotFoundError as error:
            from hadskip_export.support.errors import EngineError

            raise EngineError(f'{name} needs {error.name}; pip install "hadskip-export[train]"') from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
