"""Floats of eight bits, rounded at random."""

import torch

from pipeline_src.compression.float8 import BLOCK, Float8


def rounded(values, seed=0):
    source = Float8.of(values, torch.tensor(seed, dtype=torch.int32))
    return source.rows(slice(0, len(values)))


def of_many_sizes(count=4 * BLOCK):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(count, generator=generator) * 24 - 20  # octaves
    signs = torch.randint(2, (count,), generator=generator) * 2 - 1
    return torch.exp2(sizes) * signs


def test_what_a_float_of_eight_bits_can_be_stays():
    """All of E4M3 that is within the range of a block whose largest is 256."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = codes[codes.abs() < 256]
    values = torch.cat([values, torch.tensor([255.0])])  # 2**7 is its power of two
    for seed in range(5):
        assert torch.equal(rounded(values, seed)[:-1], values[:-1])


def test_a_value_becomes_one_of_its_two_neighbours():
    """An eighth of itself apart, and 2**-16 of the largest where spacing is even."""
    values = of_many_sizes()
    for seed in range(5):
        found = rounded(values, seed).view(-1, BLOCK)
        blocks = values.view(-1, BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        apart = (blocks.abs() / 8).maximum(largest * 2.0**-16)
        assert ((found - blocks).abs() <= apart).all()


def test_the_mean_is_the_value():
    values, draws = of_many_sizes(), 2_000
    every = torch.stack([rounded(values, seed) for seed in range(draws)]).double()
    variance = every.var(dim=0) / draws
    # Errors in units of their size: a sum of squares of nearly normal numbers. Noise of
    # 16 bits moves the mean by 2**-17 of a spacing, a draw's error is 30 times that.
    weights = 1 / values.double().square()
    error = ((every.mean(dim=0) - values).square() * weights).sum()
    expected = (variance * weights).sum()
    spread = (2 * (variance * weights).square().sum()).sqrt()
    assert float(error) <= float(expected + 5 * spread)


def test_zeros_tiny_and_huge_blocks():
    for values in (torch.zeros(300), torch.full((300,), 1e-42), torch.ones(1) * 3e38):
        found = rounded(values)
        assert found.isfinite().all()
        assert ((found - values).abs() <= values.abs() / 8 + 2.0**-117).all()


def test_what_is_not_finite_is_nan_and_its_block_is_not():
    values = of_many_sizes()
    values[3], values[5] = torch.inf, torch.nan
    found = rounded(values)
    assert found.isnan().nonzero().flatten().tolist() == [3, 5]
