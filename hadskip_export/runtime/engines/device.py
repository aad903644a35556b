"""Arrays between the host and a device, whichever library has the device."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class Value(Protocol):
    """An array on the device."""

    def shape(self) -> Sequence[int]: ...

    def numpy(self) -> np.ndarray:
        """On the host; read it only."""
        ...


class DeviceArray:
    """hidden_states on a device, float32 [b, s, H], as the chain uses an array: given whole to the next piece they stay
    there; whoever takes rows out, or puts rows in, moves them to the host."""

    def __init__(self, value: Value | np.ndarray):
        self._value = value  # on the device, or a NumPy array once rows were put in

    def __len__(self) -> int:
        return len(self._value) if isinstance(self._value, np.ndarray) else self._value.shape()[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape if isinstance(self._value, np.ndarray) else tuple(self._value.shape())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self._value if isinstance(self._value, np.ndarray) else self._value.numpy()
        return np.asarray(found, dtype) if copy is False else np.array(found, dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._on_host()[rows]

    def __setitem__(self, rows: Any, new: Any) -> None:
        self._on_host()[rows] = new

    def _on_host(self) -> np.ndarray:
        if not isinstance(self._value, np.ndarray):
            self._value = np.array(self._value.numpy())  # what it gives may be the device's own memory, and read-only
        return self._value

    @property
    def on_device(self) -> Value | None:
        """None if the host has the array."""
        return None if isinstance(self._value, np.ndarray) else self._value


class Uploads:
    """Arrays on their way to the device. The mask goes there once a call, not once a piece: each thread keeps its last
    one for as long as pieces are given the same array."""

    def __init__(self, upload: Callable[[np.ndarray], Any]):
        self._upload = upload
        self._last = threading.local()

    def __call__(self, array: np.ndarray) -> Any:
        keep = array.dtype == np.int64
        if keep and getattr(self._last, "array", None) is array:
            return self._last.value
        value = self._upload(np.ascontiguousarray(array))
        if keep:
            self._last.array, self._last.value = array, value
        return value
