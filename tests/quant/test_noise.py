import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.quant.noise import (
    mix,
    row_keys,
    row_keys_fused,
    uniform_pair,
    wrap,
)
from tests import oracles

INT32 = st.integers(-(2**31), 2**31 - 1)


def int32(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


@given(INT32)
def test_mix_equals_the_unsigned_oracle(word):
    assert int(mix(int32(word))) % oracles.WORD == oracles.mix(word % oracles.WORD)


@given(INT32, st.integers(0, 50), st.integers(0, 1000))
def test_uniform_pair_equals_the_scalar_oracle(seed, row, column):
    keys = row_keys(int32(seed), 51)
    low, high = uniform_pair(keys[row], int32(column))
    assert float(low) == oracles.noise(seed, row, column, 0)
    assert float(high) == oracles.noise(seed, row, column, 1)


@given(st.integers(1, 16), st.integers(0, 16))
def test_a_run_of_columns_is_given_by_its_first_and_its_step(step, first):
    columns, keys = torch.arange(100, dtype=torch.int32), row_keys(int32(5), 100)
    pair = uniform_pair(keys, columns, step, first)
    for one, other in zip(
        pair, uniform_pair(keys, first + step * columns), strict=True
    ):
        assert torch.equal(one, other)


@given(st.integers(-(2**70), 2**70))
def test_a_constant_is_wrapped_as_hardware_does(constant):
    wrapped = wrap(constant)
    assert -(2**31) <= wrapped < 2**31
    assert (wrapped - constant) % 2**32 == 0


def test_keys_drawn_in_one_launch_are_the_same():
    for seed, num_rows in [(3, 1), (-7, 2), (2**31 - 1, 1000)]:
        keys = row_keys_fused(int32(seed), num_rows)
        assert torch.equal(keys, row_keys(int32(seed), num_rows))


def test_mix_is_a_bijection_on_a_million_neighbours():
    words = torch.arange(2**20, dtype=torch.int32)
    assert mix(words).unique().numel() == words.numel()


def draws(seed: int, rows: int, columns: int) -> torch.Tensor:
    keys = row_keys(int32(seed), rows)[:, None]
    pair = uniform_pair(keys, torch.arange(columns, dtype=torch.int32))
    return torch.stack(pair).double()


def test_noise_is_uniform_within_five_standard_errors_of_a_bin_count():
    """Pearson's statistic over 256 bins; its mean is 255, its variance 510."""
    values = draws(1, 1000, 500)
    assert values.min() > 0
    assert values.max() < 1
    counts = torch.histc(values, bins=256, min=0, max=1)
    expected = values.numel() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - 255) < 5 * math.sqrt(510)


def test_neighbouring_draws_are_uncorrelated():
    """A correlation of n independent pairs has a standard deviation of 1/sqrt(n)."""
    values = draws(2, 600, 400) - 0.5
    bound = 5 / math.sqrt(600 * 399)
    neighbours = {
        "halves": (values[0, :-1, :-1], values[1, :-1, :-1]),
        "columns": (values[0, :-1, :-1], values[0, :-1, 1:]),
        "rows": (values[0, :-1, :-1], values[0, 1:, :-1]),
    }
    for name, (one, other) in neighbours.items():
        correlation = float((one * other).mean() / values.pow(2).mean())
        assert abs(correlation) < bound, name


def test_seeds_that_differ_in_one_bit_share_no_order_of_keys():
    """(row ^ seed) alone would give seeds 0 and 1 the same keys, swapped in pairs."""
    first, second = row_keys(int32(0), 4096), row_keys(int32(1), 4096)
    # 4096**2 / 2**32 = 0.004 coincidences are expected by chance.
    assert torch.isin(first, second).sum() <= 1
