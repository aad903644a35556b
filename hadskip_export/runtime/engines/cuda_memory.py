"""Memory of an NVIDIA GPU through CUDA's runtime, for engines whose library brings none."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from hadskip_export.errors import optional_import
from hadskip_export.runtime.engines.nvidia import checked


class CudaDevice:
    """One stream, in whose order everything happens: work, copies, memory taken and given back.

    Args:
        extra: of this package, that brings `cuda-bindings`.
    """

    def __init__(self, extra: str):
        self._cuda: Any = optional_import("cuda.bindings.runtime", extra)
        (stream,) = checked(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        self.stream = int(stream)
        self.lock = threading.Lock()  # for whoever needs several calls to stay together

    def take(self, size: int) -> int:
        (pointer,) = checked(self._cuda.cudaMallocAsync(max(1, size), self.stream))
        return int(pointer)

    def give_back(self, pointer: int) -> None:
        self._cuda.cudaFreeAsync(pointer, self.stream)

    def upload(self, array: np.ndarray) -> "DeviceMemory":
        """A copy on the device. The host's may be changed at once: CUDA has read it when this returns."""
        memory = DeviceMemory(self, array.shape, array.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._cuda.cudaMemcpyAsync(memory.pointer, array.ctypes.data, array.nbytes, kind, self.stream))
        return memory

    def download(self, memory: "DeviceMemory") -> np.ndarray:
        array = np.empty(memory.shape(), memory.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._cuda.cudaMemcpyAsync(array.ctypes.data, memory.pointer, array.nbytes, kind, self.stream))
        checked(self._cuda.cudaStreamSynchronize(self.stream))
        return array


class DeviceMemory:
    """An array on the device, given back with the last reference to it."""

    def __init__(self, device: CudaDevice, shape: Sequence[int], dtype: np.dtype):
        self._device = device
        self._shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.pointer = device.take(math.prod(self._shape) * self.dtype.itemsize)

    def shape(self) -> Sequence[int]:
        return self._shape

    def numpy(self) -> np.ndarray:
        return self._device.download(self)

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._device.give_back(self.pointer)
