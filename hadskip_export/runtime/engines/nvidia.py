"""Is there an NVIDIA GPU, and which? Asked of the driver itself, for some libraries do not survive without one."""

import ctypes
import platform
from typing import Any

from hadskip_export.support.errors import EngineError


def why_no_device() -> str | None:
    """Why no NVIDIA GPU can be used here; None if one can."""
    try:
        driver = _driver()
    except OSError:
        return "there is no NVIDIA driver on this machine"
    error = driver.cuInit(0)
    return f"the NVIDIA driver finds no usable GPU (cuInit: {error})" if error else None


def device_name() -> str:
    """Name and compute capability of the first GPU.

    Raises:
        EngineError: there is none.
    """
    if lack := why_no_device():
        raise EngineError(f"no GPU: {lack}")
    driver = _driver()
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor = compute_capability()
    return f"{name.value.decode()}, compute capability {major}.{minor}"


def compute_capability() -> tuple[int, int]:
    """Of the first GPU, which must be there."""
    driver, device, major, minor = _driver(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._MINOR
    return major.value, minor.value


def checked(result: tuple[Any, ...], remedy: str = "") -> tuple[Any, ...]:
    """What a function of `cuda-bindings` gave beside its status.

    Raises:
        EngineError: the status is an error.
    """
    status, *values = result
    if status.value != 0:
        raise EngineError(f"CUDA: {status.name}{remedy}")
    return tuple(values)


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
