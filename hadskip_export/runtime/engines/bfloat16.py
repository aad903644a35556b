"""bfloat16 in NumPy, which has no such type: the upper half of each float32's bits."""

from typing import Any

import numpy as np

STEP = 2**-7  # from one bfloat16 to the next, of the value, at most


class Bfloat16States:
    """hidden_states [b, s, H] in bfloat16, as the chain uses an array: it takes rows out and puts them in.

    Attributes:
        bits: uint16 [b, s, H].
    """

    def __init__(self, bits: np.ndarray):
        self.bits = bits

    @classmethod
    def nearest(cls, states: np.ndarray) -> "Bfloat16States":
        """From float32, each to the nearest, ties to even. What is not a number stays so.

        Raises:
            ValueError: not float32.
        """
        if states.dtype != np.float32:
            raise ValueError(f"hidden_states are {states.dtype}, expected float32")
        states = np.where(np.isnan(states), np.float32(np.nan), states)  # others could become a number
        bits = np.ascontiguousarray(states).view(np.uint32)
        return cls(((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16))

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        states = (self.bits.astype(np.uint32) << 16).view(np.float32)
        return states if dtype is None else states.astype(dtype, copy=False)

    def __getitem__(self, rows: Any) -> "Bfloat16States":
        return Bfloat16States(self.bits[rows])

    def __setitem__(self, rows: Any, new: "Bfloat16States") -> None:
        self.bits[rows] = new.bits
