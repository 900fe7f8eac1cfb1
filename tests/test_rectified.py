"""Codes in front of a ReLU: exact masks, unbiased values, nothing crossing zero."""

import math
import statistics

import pytest
import torch

from pipeline_src.quant.noise import row_keys, uniform_pair
from pipeline_src.quant.rectified import (
    RECTIFIED_BITS,
    Normalization,
    block_shape,
    encode,
)

SEED = torch.tensor(-77, dtype=torch.int32)
WIDTH = 8


def normalization(weight=None, bias=None):
    """Weights of both signs and 0, biases of both signs and 0."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(4, WIDTH, generator=generator)
    if weight is None:
        weight = draw[0] * torch.tensor([1, 1, 1, 1, 1, 0, 0, 0.0])
    if bias is None:
        bias = draw[1] * torch.tensor([1, 1, 1, 1, 0, 1, -1, 0.0])
    return Normalization(draw[2], draw[3].abs() + 0.5, weight, bias)


def reference(y, norm, dropout, seed=SEED):
    """Values n, u, and h, one operation after the other."""
    n = (y - norm.mean) * norm.inverse_std
    u = n * norm.weight + norm.bias
    keys = row_keys(seed, len(y))[:, None]
    columns = torch.arange(y.shape[1], dtype=torch.int32)
    survives = uniform_pair(keys, columns)[1] >= dropout
    kept = (u > 0) & survives
    return n, u, torch.where(kept, u * (1 / (1 - dropout)), 0.0), kept


def rows(num_rows, seed=2):
    return torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def encoded(y, norm, dropout, bits, rows_per_block=8, seed=SEED, compile="false"):
    h = y.clone()
    return h, encode(h, norm, seed, dropout, bits, rows_per_block, compile)


def outputs(codes):
    return torch.cat([h for _, h in codes.outputs()])


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_encoding_overwrites_with_the_layers_output(bits, dropout):
    y, norm = rows(64), normalization()
    h, _ = encoded(y, norm, dropout, bits)
    expected = reference(y, norm, torch.tensor(dropout))[2]
    # 1 / (1 - p) is formed in float32 there, in double here: one ulp.
    assert torch.allclose(h, expected, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_masks_are_exact_for_every_sign_of_weight_and_bias(bits, dropout):
    """A gradient of ones comes back as ones times the mask, without BatchNorm."""
    y, norm = rows(400), normalization()
    _, codes = encoded(y, norm, dropout, bits)
    kept = reference(y, norm, dropout)[3]
    ones = torch.ones(400, WIDTH)
    of_bias, _ = codes.gradient_sums(ones)
    assert torch.allclose(of_bias, kept.sum(dim=0) / (1 - dropout), rtol=2.0**-20)
    zero = torch.zeros(WIDTH)
    codes.backpropagate(ones, zero, zero)
    passes = norm.weight * norm.inverse_std / (1 - dropout)
    assert torch.allclose(ones, kept * passes, rtol=2.0**-20)
    assert torch.equal(ones == 0, ~kept | (norm.weight == 0))


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_rounding_stays_on_its_side_of_the_threshold(bits):
    y, norm = rows(400), normalization()
    _, codes = encoded(y, norm, 0.0, bits)
    estimate = outputs(codes)
    _, u, _, kept = reference(y, norm, 0.0)
    assert torch.all(estimate[~kept] == 0)
    # What rounding to bfloat16 may move the outermost edges by, and an ulp.
    assert torch.all(estimate[kept] >= -(2.0**-20) * (1 + u.abs().max()))


def rounding_variance(n, codes, norm):
    """(n - a)(b - n) between the neighbouring edges a and b of each value."""
    low, high = (
        end.double().repeat_interleave(8)[:, None] for end in (codes.low, codes.high)
    )
    threshold = torch.minimum(torch.maximum(norm.threshold.double(), low), high)
    left = torch.where(n >= threshold, threshold, low)
    right = torch.where(n >= threshold, high, threshold)
    width = (right - left) / (2 ** (codes.bits - 1) - 1)
    fraction = torch.where(width > 0, (n - left) / width, 0.0) % 1
    return width**2 * fraction * (1 - fraction)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_estimates_are_unbiased(bits):
    """Means over seeds lie within their standard error, for all values at once.

    The error is that of the two-point law of each value, not of the sample, which
    misses edges that are rarely taken. Rounding to 16 bits of noise moves a mean by
    2**-17 of a bin; bins span at most 8 and weights are below 3.
    """
    repeats, y, norm = 600, rows(16), normalization()
    gradient = rows(16, seed=5)
    n, _, expected_h, kept = reference(y, norm, 0.0)
    total = torch.zeros(16, WIDTH, dtype=torch.float64)
    total_product = torch.zeros(WIDTH, dtype=torch.float64)
    for seed in range(repeats):
        seed = torch.tensor(seed, dtype=torch.int32)
        _, codes = encoded(y, norm, 0.0, bits, seed=seed)
        total += outputs(codes)
        total_product += codes.gradient_sums(gradient)[1]
    variance = rounding_variance(n.double(), codes, norm) / repeats
    bound = -statistics.NormalDist().inv_cdf(1e-6 / (17 * WIDTH) / 2)
    resolution = 3 * 8 * 2.0**-17

    error = (total / repeats - expected_h).abs()
    of_h = variance * norm.weight**2 * kept
    assert torch.all(error <= bound * of_h.sqrt() + resolution)

    passed = torch.where(kept, gradient, 0.0).double()
    error = (total_product / repeats - (passed * n).sum(dim=0)).abs()
    of_product = (passed**2 * variance).sum(dim=0)
    allowed = bound * of_product.sqrt() + resolution * passed.abs().sum(dim=0)
    assert torch.all(error <= allowed)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_bytes_kept(bits):
    _, codes = encoded(rows(640), normalization(), 0.5, bits)
    assert codes.packed.nbytes == 640 * WIDTH * bits // 8
    assert codes.low.nbytes == codes.high.nbytes == 2 * 640 // 8


def test_compiled_equals_plain_to_the_bit():
    """But for sums over rows, whose order is the compiler's: 96 terms below 20."""
    y, norm = rows(96), normalization()
    gradient, sums = rows(96, seed=3), rows(2, seed=4)
    results, totals = [], []
    for compile in ("false", "true"):
        h, codes = encoded(y, norm, 0.3, 2, compile=compile)
        totals.append(torch.stack(codes.gradient_sums(gradient)))
        moved = gradient.clone()
        codes.backpropagate(moved, *sums)
        results.append((h, codes.packed, codes.low, codes.high, moved, outputs(codes)))
    for plain, fused in zip(*results, strict=True):
        assert torch.equal(plain, fused)
    assert torch.allclose(*totals, rtol=0, atol=96 * 2.0**-24 * 96 * 20)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_marks_its_block(bad):
    y = rows(24)
    y[9, 3] = bad
    _, codes = encoded(y, normalization(), 0.0, 2)
    finite = torch.isfinite(codes.high - codes.low)
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("bits", "rows_per_block", "message"),
    [
        (1, 8, r"bits must be one of \(2, 4, 8\) .* got 1"),
        (2, 6, "rows_per_block must be a multiple of 4 at 2 bits.* got 6"),
        (4, 0, "rows_per_block must be a multiple of 2 at 4 bits.* got 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(bits, rows_per_block, message):
    with pytest.raises(ValueError, match=message):
        block_shape(24, WIDTH, bits, rows_per_block)
