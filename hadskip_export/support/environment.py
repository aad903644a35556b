"""What a figure was measured on: chip, versions, load."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "hadskip-export",
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "transformers",
)


def chip() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Installed versions of the libraries that matter, Python's among them; nothing is imported."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """The machine as `bench --json` records it; `load`: the one-minute load average."""
    return {
        "chip": chip(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def busy_share(seconds: float = 0.5) -> float | None:
    """Share of the processors that is in use right now; None where the system does not tell.

    The load average would still hold what has just ended.
    """
    try:
        before = _processor_time()
        time.sleep(seconds)
        total, idle = (now - then for now, then in zip(_processor_time(), before, strict=True))
        return 1 - idle / total
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _processor_time() -> tuple[int, int]:
    """(all, idle) ticks since the system started."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(ticks[:8]), ticks[3] + ticks[4]  # idle and waiting for a disk; guests are counted with the others
