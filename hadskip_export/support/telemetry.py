"""Engine libraries report to their makers from their first import on. Imported by this package, they do not.

OpenVINO writes an id into the home folder and asks a host of Google's; where its package `openvino_telemetry` cannot be
imported, it goes on without. ONNX Runtime has done the like on Linux since 1.29: an id and a queue of events under
`~/.cache/Microsoft`; it reads an environment variable when it is imported, and its `disable_telemetry_events` comes
too late.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_REPORTER = "openvino_telemetry"
_SWITCH = "ORT_DISABLE_TELEMETRY"
_lock = threading.RLock()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """For the libraries imported meanwhile. Afterwards modules and environment are as before: an application may use
    OpenVINO's package itself, and a library that it imported earlier goes on as it was."""
    with _lock:
        reporter, switch = sys.modules.get(_REPORTER), os.environ.get(_SWITCH)
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # Python's mark for what cannot be imported
        os.environ[_SWITCH] = "1"
        try:
            yield
        finally:
            del sys.modules[_REPORTER], os.environ[_SWITCH]
            if reporter is not None:
                sys.modules[_REPORTER] = reporter
            if switch is not None:
                os.environ[_SWITCH] = switch
