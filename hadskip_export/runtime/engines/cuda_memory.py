"""Memory of an NVIDIA GPU through CUDA's runtime, for engines whose library brings none."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.nvidia import checked
from hadskip_export.support.errors import optional_import

KEPT = 2**40  # bytes of free memory that are not given back to the system: by default all of it goes at every wait


class CudaDevice:
    """One stream, in whose order everything happens: work, copies, memory taken and given back to a pool of its own.

    Args:
        extra: of this package, that brings `cuda-bindings`.
    """

    def __init__(self, extra: str):
        self._cuda: Any = optional_import("cuda.bindings.runtime", extra)
        cuda, driver = self._cuda, optional_import("cuda.bindings.driver", extra)
        (stream,) = checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.stream = int(stream)
        place = cuda.cudaMemPoolProps()
        place.allocType = cuda.cudaMemAllocationType.cudaMemAllocationTypePinned
        place.location.type, place.location.id = cuda.cudaMemLocationType.cudaMemLocationTypeDevice, 0
        (self._pool,) = checked(cuda.cudaMemPoolCreate(place))
        threshold = cuda.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        checked(cuda.cudaMemPoolSetAttribute(self._pool, threshold, driver.cuuint64_t(KEPT)))
        self.lock = threading.Lock()  # for whoever needs several calls to stay together

    def __del__(self) -> None:
        """With the last piece and the last array: each of them holds on to it."""
        if hasattr(self, "_pool"):
            self._cuda.cudaMemPoolDestroy(self._pool)
            self._cuda.cudaStreamDestroy(self.stream)

    def take(self, size: int) -> int:
        (pointer,) = checked(self._cuda.cudaMallocFromPoolAsync(max(1, size), self._pool, self.stream))
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
