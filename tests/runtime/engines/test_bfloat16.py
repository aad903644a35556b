"""bfloat16 in NumPy, against PyTorch's."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hadskip_export.runtime.engines.bfloat16 import Bfloat16States

BITS = arrays.arrays(np.uint32, (2, 3, 4), elements=st.integers(0, 2**32 - 1))


@given(BITS)
def test_every_float_goes_to_the_nearest_bfloat16_as_in_torch(bits):
    floats = bits.view(np.float32)
    floats[np.isnan(floats)] = 0
    expected = torch.from_numpy(floats).to(torch.bfloat16)
    np.testing.assert_array_equal(Bfloat16States.nearest(floats), expected.float().numpy())


@given(BITS)
def test_what_is_a_bfloat16_stays_what_it_is(bits):
    states = Bfloat16States((bits >> 16).astype(np.uint16))
    floats = np.asarray(states)
    numbers = ~np.isnan(floats)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(Bfloat16States.nearest(floats).bits[numbers], states.bits[numbers])


@given(st.lists(st.integers(0, 4), unique=True), st.integers(1, 3))
def test_rows_and_tokens_are_taken_out_and_put_in_as_in_an_array(rows, length):
    floats = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2)  # all of them bfloat16s
    states = Bfloat16States.nearest(floats)
    few = states[rows, :length]
    assert len(few) == len(rows)
    np.testing.assert_array_equal(few, floats[rows, :length])
    floats[rows, :length] = floats[rows, :length][::-1]
    states[rows, :length] = few[::-1]
    np.testing.assert_array_equal(states, floats)
