"""What each engine is built from, a file for each. The engine itself, which loads and runs, is in `runtime/engines/`,
and its table there names both."""

import importlib

from hadskip_export.exporters.targets.base import Target
from hadskip_export.runtime.engines import ENGINES


def target_of(engine: str) -> Target:
    """The target of an engine that is in the table."""
    module, _, name = ENGINES[engine].target.partition(":")
    return getattr(importlib.import_module(module), name)
