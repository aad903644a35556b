"""What a figure was measured on: chip, versions, load."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("hadskip-export", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")


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


def load_per_core() -> float | None:
    """The one-minute load average by CPU; None where the system tells none."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
