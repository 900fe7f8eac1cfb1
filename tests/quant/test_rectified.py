"""Codes in front of a ReLU: exact masks, unbiased values, nothing crossing zero."""

import math
import statistics

import pytest
import torch

from pipeline_src.quant.noise import row_keys, uniform_pair
from pipeline_src.quant.rectified import (
    LEVELS,
    RECTIFIED_BITS,
    Normalization,
    RectifiedCoder,
    RectifiedSetting,
    active_sums,
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


def encoded(y, norm, dropout, bits, seed=SEED, boundaries=None, fused=False):
    """Codes of rows, as one run in blocks of 8, and h before them."""
    h = y.clone()
    coder = RectifiedCoder(bits, 8, boundaries)
    means = side_means(y, norm) if coder.needs_means else None
    setting = RectifiedSetting(coder, norm, dropout, means, fused)
    return h, encode(h, *buffers(len(y), coder), seed, 0, setting)


def buffers(num_rows, coder):
    packed = torch.empty(num_rows // 8, coder.bits, WIDTH, dtype=torch.uint8)
    return packed, torch.empty(num_rows // 8, coder.num_ends, dtype=torch.bfloat16)


def side_means(y, norm):
    """Per feature, by definition; 0 where a side is empty."""
    n, u, _, _ = reference(y, norm, 0.0)
    of = [torch.where(side, n, torch.nan).nanmean(dim=0) for side in (u <= 0, u > 0)]
    return torch.stack(of).nan_to_num(0.0)


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
    estimate = codes.output()
    _, u, _, kept = reference(y, norm, 0.0)
    assert torch.all(estimate[~kept] == 0)
    # What rounding to bfloat16 may move the outermost edges by, and an ulp.
    assert torch.all(estimate[kept] >= -(2.0**-20) * (1 + u.abs().max()))


def edges_of_active(codes, norm):
    """Edges on the active side of each block and feature, (rows, features, levels)."""
    coder = codes.setting.coder
    low, high = (end.repeat_interleave(8)[:, None] for end in codes.ends.double().T)
    threshold = torch.minimum(torch.maximum(norm.threshold.double(), low), high)
    end = torch.where(norm.weight >= 0, high, low)
    steps = LEVELS[coder.bits][1] - 1
    positions = torch.arange(steps + 1.0)
    if coder.boundaries is not None:
        positions = coder.boundaries
    return threshold[..., None] + (end - threshold)[..., None] * positions / steps


def rounding_variance(n, codes, norm):
    """|n - a| |b - n| between the neighbouring edges a and b of each active value."""
    edges = edges_of_active(codes, norm)
    if (norm.weight < 0).any():
        edges = torch.where(norm.weight[:, None] < 0, edges.flip(-1), edges)
    n = n.double()[..., None]
    index = (n >= edges).sum(dim=-1, keepdim=True).clamp(1, edges.shape[-1] - 1)
    left, right = edges.gather(-1, index - 1), edges.gather(-1, index)
    return ((n - left) * (right - n)).clamp(min=0)[..., 0]


SOLVED = [None, torch.tensor([0.0, 0.75, 2.0])]


@pytest.mark.parametrize(
    ("bits", "boundaries"), [(2, SOLVED[0]), (2, SOLVED[1]), (4, None), (8, None)]
)
def test_estimates_are_unbiased(bits, boundaries):
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
        _, codes = encoded(y, norm, 0.0, bits, seed=seed, boundaries=boundaries)
        total += codes.output()
        total_product += codes.gradient_sums(gradient)[1]
    variance = rounding_variance(n, codes, norm) / repeats
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


@pytest.mark.parametrize("bits", [4, 8])
def test_the_inactive_side_is_unbiased_from_four_bits(bits):
    """BatchNorm's term is linear in n: its mean over seeds is that of the exact n."""
    repeats, y, norm = 600, rows(16), normalization()
    n = reference(y, norm, 0.0)[0]
    zero, one = torch.zeros(WIDTH), torch.ones(WIDTH)
    total = torch.zeros(16, WIDTH, dtype=torch.float64)
    for seed in range(repeats):
        seed = torch.tensor(seed, dtype=torch.int32)
        _, codes = encoded(y, norm, 0.0, bits, seed=seed)
        moved = torch.zeros(16, WIDTH)
        codes.backpropagate(moved, zero, one)
        total -= moved
    factor = norm.weight * norm.inverse_std
    # A value's variance is at most a quarter of its bin squared, and bins at most 8.
    width = 8 / (LEVELS[bits][0] - 1)
    bound = -statistics.NormalDist().inv_cdf(1e-6 / (16 * WIDTH) / 2)
    allowed = (bound / 2 / repeats**0.5 + 2.0**-17) * width * factor.abs()
    assert torch.all(((total / repeats) - n * factor).abs() <= allowed + 2.0**-18)


@pytest.mark.parametrize("bits", [1, 2])
def test_a_side_of_one_level_is_given_by_its_mean(bits):
    """Its sum over nodes is exact, feature by feature."""
    y, norm = rows(64), normalization()
    kept = reference(y, norm, 0.0)[3]
    _, codes = encoded(y, norm, 0.0, bits)
    moved = torch.zeros(64, WIDTH)
    codes.backpropagate(moved, torch.zeros(WIDTH), torch.ones(WIDTH))
    factor = norm.weight * norm.inverse_std
    expected = torch.where(kept, 0.0, side_means(y, norm)[0])
    inactive = torch.where(kept, 0.0, -moved)
    assert torch.allclose(inactive, expected * factor, rtol=0, atol=2.0**-20)
    if bits == 1:
        affine = side_means(y, norm)[1] * norm.weight + norm.bias
        estimate = codes.output()
        assert torch.allclose(estimate, torch.where(kept, affine, 0.0), atol=2.0**-20)


@pytest.mark.parametrize("fused", [False, True])
def test_active_sums(fused):
    """Count and sum of active n, sum of all n, as sums of float32 terms below 8."""
    y, norm = rows(96), normalization()
    n, u, _, _ = reference(y, norm, 0.0)
    active = (u > 0).float()
    expected = torch.stack([term.sum(dim=0) for term in (active, active * n, n)])
    found = active_sums(y, norm, 8, fused)
    assert torch.allclose(found, expected, rtol=0, atol=96 * 8 * 2.0**-23)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_bytes_kept(bits):
    _, codes = encoded(rows(640), normalization(), 0.5, bits)
    assert codes.packed.nbytes == 640 * WIDTH * bits // 8
    assert codes.ends.nbytes == (0 if bits == 1 else 2 * 2 * 640 // 8)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_runs_of_rows_give_the_codes_of_all_rows(bits):
    """Noise belongs to a row, whichever run it is coded in."""
    y, norm = rows(96), normalization()
    h, whole = encoded(y, norm, 0.3, bits)
    parts, codes = y.clone(), []
    for run in (slice(0, 40), slice(40, 96)):
        kept = buffers(run.stop - run.start, whole.setting.coder)
        codes.append(encode(parts[run], *kept, SEED, run.start, whole.setting))
    assert torch.equal(parts, h)
    assert torch.equal(torch.cat([one.packed for one in codes]), whole.packed)
    outputs = torch.cat([one.output() for one in codes])
    assert torch.equal(outputs, whole.output())


@pytest.mark.parametrize(("bits", "boundaries"), [(1, None), (2, SOLVED[1]), (4, None)])
def test_compiled_equals_plain_to_the_bit(bits, boundaries):
    """But for sums over rows, whose order is the compiler's: 96 terms below 20."""
    y, norm = rows(96), normalization()
    gradient, sums = rows(96, seed=3), rows(2, seed=4)
    results, totals = [], []
    for fused in (False, True):
        h, codes = encoded(y, norm, 0.3, bits, boundaries=boundaries, fused=fused)
        totals.append(codes.gradient_sums(gradient))
        moved = gradient.clone()
        codes.backpropagate(moved, *sums)
        results.append((h, codes.packed, codes.ends, moved, codes.output()))
    for plain, fused in zip(*results, strict=True):
        assert torch.equal(plain, fused)
    assert torch.allclose(*totals, rtol=0, atol=96 * 2.0**-24 * 96 * 20)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_marks_its_block(bad):
    y = rows(24)
    y[9, 3] = bad
    _, codes = encoded(y, normalization(), 0.0, 2)
    assert not codes.is_finite
    assert torch.isfinite(codes.ends).all(dim=1).tolist() == [True, False, True]
    _, codes = encoded(rows(24), normalization(), 0.0, 2)
    assert codes.is_finite


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 8), r"bits must be one of \(1, 2, 4, 8\), got 3"),
        ((2, 6), "rows_per_block must be a multiple of 4 at 2 bits.* got 6"),
        ((4, 0), "rows_per_block must be a multiple of 2 at 4 bits.* got 0"),
        ((2, 8, torch.tensor([0.0, 1.0, 2.0, 3.0])), "2 bins must be 3 values, got 4"),
        ((2, 8, torch.tensor([0.0, 2.0, 2.0])), "increase strictly from 0 to 2, got"),
    ],
)
def test_what_cannot_be_packed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RectifiedCoder(*arguments)
