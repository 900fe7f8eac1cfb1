"""Observed positions: exact fractions, whole blocks, and both ends reached."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.training.observations import observe_blocks


def test_positions_and_fractions_equal_a_loop_over_blocks():
    x = torch.randn(23, 7, generator=torch.Generator().manual_seed(0)).relu()
    block_size, bits = 10, 4
    flat = x.flatten().tolist()
    blocks = [flat[at : at + block_size] for at in range(0, len(flat), block_size)]
    generator = torch.Generator().manual_seed(1)
    # More blocks than there are: all whole blocks, in order.
    seen = observe_blocks(x, block_size, bits, sample_blocks=99, generator=generator)
    expected = [
        (value - min(block)) / (max(block) - min(block)) * 15
        for block in blocks[:-1]
        for value in block
    ]
    at_minimum = sum(value == min(block) for block in blocks for value in block)
    # The last block holds one value, which is its minimum.
    at_maximum = sum(value == max(block) for block in blocks[:-1] for value in block)
    assert len(blocks[-1]) == 1
    # One rounding to float32 of values up to 15.
    assert np.abs(seen.position - expected).max() <= 15 * 2**-24
    assert seen.position.dtype == np.float32
    assert (seen.block_size, seen.num_values) == (10, 161)
    assert seen.at_minimum == at_minimum / 161
    assert seen.at_maximum == at_maximum / 161
    assert seen.zero_fraction == flat.count(0.0) / 161


@given(
    block_size=st.integers(2, 40),
    bits=st.sampled_from([1, 2, 4, 8]),
    shift=st.floats(-1e3, 1e3),
    size=st.floats(1e-3, 1e3),
)
@settings(max_examples=50, deadline=None)
def test_every_block_reaches_both_ends_exactly(block_size, bits, shift, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator) * size + shift
    seen = observe_blocks(x, block_size, bits, sample_blocks=3, generator=generator)
    blocks = seen.position.reshape(-1, block_size)
    # Values may be equal in float32 when shift dwarfs size; a block never is.
    assert np.all(blocks.min(axis=1) == 0)
    assert np.all(blocks.max(axis=1) == 2**bits - 1)


def test_sample_is_whole_blocks_chosen_by_the_seed():
    x = torch.arange(600, dtype=torch.float32).reshape(60, 10) ** 1.5

    def observe(seed):
        generator = torch.Generator().manual_seed(seed)
        seen = observe_blocks(x, 20, 2, sample_blocks=4, generator=generator)
        return seen.position

    whole = observe_blocks(x, 20, 2, sample_blocks=30, generator=torch.Generator())
    blocks = {tuple(block) for block in whole.position.reshape(-1, 20)}
    sample = {tuple(block) for block in observe(0).reshape(-1, 20)}
    assert len(sample) == 4
    assert sample <= blocks
    assert np.array_equal(observe(0), observe(0))
    assert not np.array_equal(observe(0), observe(1))


def test_constant_blocks_lie_on_the_minimum():
    x = torch.tensor([[5.0, 5.0], [1.0, 2.0]])
    generator = torch.Generator().manual_seed(0)
    seen = observe_blocks(x, 2, 2, sample_blocks=2, generator=generator)
    assert seen.position.tolist() == [0, 0, 0, 3]
    assert (seen.at_minimum, seen.at_maximum, seen.zero_fraction) == (0.75, 0.25, 0)


def test_activation_smaller_than_a_block_is_one_block():
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 1.0, 3.0]])
    seen = observe_blocks(x, 64, 2, sample_blocks=8, generator=generator)
    assert (seen.block_size, seen.position.tolist()) == (3, [0, 1, 3])


@pytest.mark.parametrize(
    ("x", "block_size", "message"),
    [
        (torch.zeros(0, 4), 4, "empty activation"),
        (torch.tensor([[0.0, float("nan")]]), 2, "NaN or infinity"),
        (torch.zeros(2, 2), 0, "at least 1, got 0 and 1"),
    ],
)
def test_what_cannot_be_observed_is_refused(x, block_size, message):
    with pytest.raises(ValueError, match=message):
        observe_blocks(x, block_size, 2, sample_blocks=1, generator=torch.Generator())
