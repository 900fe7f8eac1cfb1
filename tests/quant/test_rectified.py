"""Codes in front of a ReLU: exact masks, unbiased values and gradients."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from pipeline_src.quant.noise import row_keys, uniform_pair
from pipeline_src.quant.rectified import (
    LARGEST_END,
    RECTIFIED_BITS,
    RUN_VALUES,
    Normalization,
    RectifiedCoder,
    RectifiedSetting,
    encode,
    encode_beside,
    side_means,
)
from pipeline_src.quant.shared_noise import estimate_variance
from pipeline_src.training.meters import measure_memory

SEED = torch.tensor(-77, dtype=torch.int32)
WIDTH = 8
# Where kernels are compiled: that of tests/training/test_compiled_lean.py, which finds
# them compiled.
COMPILED_WIDTH = 64


def normalization(weight=None, bias=None, width=WIDTH):
    """Weights of both signs and 0, biases of both signs and 0."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(4, width, generator=generator)
    if weight is None:
        weight = draw[0] * torch.tensor([1, 1, 1, 1, 1, 0, 0, 0.0]).repeat(width // 8)
    if bias is None:
        bias = draw[1] * torch.tensor([1, 1, 1, 1, 0, 1, -1, 0.0]).repeat(width // 8)
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


def rows(num_rows, seed=2, width=WIDTH):
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def encoded(y, norm, dropout, bits, seed=SEED, fused=False):
    """Codes of rows, in blocks of 8, and h before them."""
    h = y.clone()
    means = side_means(y, len(y), norm, fused) if bits == 1 else None
    dropout = torch.tensor(dropout)
    setting = RectifiedSetting(RectifiedCoder(bits, 8), norm, dropout, means, fused)
    return h, encode(h, seed, setting)


def moved(codes, gradient, share=0.0):
    """The gradient of y, with BatchNorm if share is 1 / number of rows."""
    result = gradient.clone()
    sums = codes.gradient_sums(gradient)
    codes.backpropagate(result, sums, torch.tensor(share))
    return result


def estimates_of_n(codes):
    """What codes stand for, read from BatchNorm's term in the gradient of y."""
    norm = codes.setting.normalization
    sums = torch.stack([torch.zeros(WIDTH), -torch.ones(WIDTH)])
    result = torch.zeros(len(codes.packed) * 8, WIDTH)
    codes.backpropagate(result, sums, torch.tensor(1.0))
    return result / (norm.weight * norm.inverse_std)


def means_of_sides(y, norm):
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
    found = moved(codes, ones)
    passes = norm.weight * norm.inverse_std / (1 - dropout)
    assert torch.allclose(found, kept * passes, rtol=2.0**-20)
    assert torch.equal(found == 0, ~kept | (norm.weight == 0))


def everywhere():
    """A normalization whose weights are not 0, so that n can be read back."""
    drawn = normalization()
    weight = torch.where(drawn.weight == 0, -0.7, drawn.weight)
    # Thresholds beyond a block's ends on either side, too: n spans about 3.
    bias = torch.cat([drawn.bias[:-2], torch.tensor([9.0, -9.0])])
    return drawn._replace(weight=weight, bias=bias)


def variances(codes, y):
    """Of the estimate of each n, (rows, WIDTH): the mean of its estimate over noise."""
    norm, steps = codes.setting.normalization, 2 ** (codes.setting.coder.bits - 1) - 1
    n, u, _, _ = reference(y, norm, 0.0)
    low, high = codes.ends.view(torch.bfloat16).double().view(-1, 2).T
    low, high = (end.repeat_interleave(8)[:, None] for end in (low, high))
    middle = norm.threshold.double().clamp(low, high)
    reach = torch.where((u > 0) == (norm.weight >= 0), high, low) - middle
    share = ((n.double() - middle) / reach).nan_to_num(0.0).abs()
    if steps > 1:
        return reach**2 * (0.5 + 2.0 * share) / (12 * steps**2)
    noise = (torch.arange(2**10, dtype=torch.float64) + 0.5) * 2.0**-10
    threshold = 0.6 * noise + 0.4 * noise**9
    level = (share[..., None] > threshold).to(torch.int32)
    return reach**2 * estimate_variance(level, noise, 1).mean(dim=-1).clamp(min=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_estimates_are_unbiased(bits):
    """Of every n, on either side, within the standard error over seeds.

    The mean over all noise is met within 2**-14.9 of a reach (tests/test_shared_noise),
    and reaches are below 8.
    """
    repeats, y, norm = 600, rows(16), everywhere()
    n = reference(y, norm, 0.0)[0]
    total = torch.zeros(16, WIDTH, dtype=torch.float64)
    total_h = torch.zeros(16, WIDTH, dtype=torch.float64)
    for seed in range(repeats):
        seed = torch.tensor(seed, dtype=torch.int32)
        _, codes = encoded(y, norm, 0.0, bits, seed=seed)
        total += estimates_of_n(codes)
        total_h += codes.output(slice(0, 16))
    bound = -statistics.NormalDist().inv_cdf(1e-6 / (16 * WIDTH) / 2)
    allowed = bound * (variances(codes, y) / repeats).sqrt() + 8 * 2.0**-14
    assert torch.all((total / repeats - n).abs() <= allowed)
    _, _, expected_h, _ = reference(y, norm, 0.0)
    error = (total_h / repeats - expected_h).abs()
    assert torch.all(error <= allowed * norm.weight.abs() + 2.0**-18)
    assert torch.all(total_h[expected_h == 0] == 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("copies", [1, 500])
def test_batch_norms_gradient_is_right_for_four_nodes(bits, copies):
    """The smallest case of a code that stands for a mean: -0.0447 was -0.0671.

    A node's own estimate is in the mean over nodes as well, which with four nodes
    would add 0.04 to the third.
    """
    y = torch.tensor([-3.0, -1.0, 1.0, 3.0]).repeat(2 * copies)[:, None]
    # Four nodes are four rows of a block; two blocks at once are two cases of four.
    gradient = torch.tensor([0.0, 0.0, 1.0, 0.0]).repeat(2 * copies)[:, None]
    one, num_nodes = torch.ones(1), 4.0 * copies * 2
    norm = Normalization(0 * one, one / 5**0.5, one, 0 * one)
    setting = RectifiedSetting(
        RectifiedCoder(bits, 8), norm, torch.zeros(()), None, False
    )
    repeats = 1000 if copies == 1 else 40
    draws = []
    for seed in range(repeats):
        codes = encode(y.clone(), torch.tensor(seed, dtype=torch.int32), setting)
        found = moved(codes, gradient, 1 / num_nodes)
        draws.append(found.view(-1, 4).mean(dim=0).double())
    sample = torch.stack(draws)
    n = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5
    passed = torch.tensor([0.0, 0.0, 1.0, 0.0])
    expected = (passed - 0.25 - n * (passed * n).mean()) / 5**0.5
    rounded = torch.tensor([-0.0447, -0.0894, 0.3130, -0.1789])
    assert torch.allclose(expected, rounded, rtol=0, atol=6e-5)
    bound = -statistics.NormalDist().inv_cdf(1e-6 / 4 / 2)
    allowed = bound * sample.std(dim=0) / repeats**0.5 + 2.0**-14
    assert torch.all((sample.mean(dim=0) - expected).abs() <= allowed)
    assert torch.all(allowed < 0.01)  # less than half of what was wrong


def test_with_one_bit_a_side_is_given_by_its_mean():
    """Its sum over nodes is exact, feature by feature; its gradient is not."""
    y, norm = rows(64), everywhere()
    active = reference(y, norm, 0.0)[1] > 0
    _, codes = encoded(y, norm, 0.0, 1)
    means = means_of_sides(y, norm)
    expected = torch.where(active, means[1], means[0])
    assert torch.allclose(estimates_of_n(codes), expected, rtol=0, atol=2.0**-20)
    affine = means[1] * norm.weight + norm.bias
    estimate = codes.output(slice(0, 64))
    assert torch.allclose(estimate, torch.where(active, affine, 0.0), atol=2.0**-20)


@pytest.mark.parametrize("num_nodes", [96, 91, 7])
def test_means_of_sides_leave_padding_out(num_nodes):
    """Sums of float32 terms below 8."""
    y, norm = rows(96), normalization()
    found = side_means(y, num_nodes, norm, False)
    expected = means_of_sides(y[:num_nodes], norm)
    assert torch.allclose(found, expected, rtol=0, atol=96 * 8 * 2.0**-23)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_a_block_of_equal_values_is_exact_but_for_its_ends(bits):
    """Rounded outwards to bfloat16, ends are within 2**-7 of the value."""
    y, zero = torch.full((16, WIDTH), 0.3), torch.zeros(WIDTH)
    norm = everywhere()._replace(mean=zero, inverse_std=zero + 1)
    _, codes = encoded(y, norm, 0.0, bits)
    # Estimates reach 5 reaches from the middle.
    assert torch.all((estimates_of_n(codes) - 0.3).abs() <= 6 * 2.0**-7 * 0.3)


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_bytes_kept(bits):
    _, codes = encoded(rows(640), normalization(), 0.5, bits)
    assert codes.packed.nbytes == 640 * WIDTH * bits // 8
    if bits == 1:
        assert codes.ends is None
    else:
        assert codes.ends.nbytes == 2 * 2 * 640 // 8


@pytest.mark.parametrize("bits", RECTIFIED_BITS)
def test_parts_of_a_layer_give_the_bits_of_the_whole(bits, monkeypatch):
    """A plain kernel takes 2 blocks at a time, then all at once."""
    y, norm, gradient = rows(96), normalization(), rows(96, seed=3)
    results = []
    for values in (2 * 8 * WIDTH, 96 * WIDTH):
        monkeypatch.setattr("pipeline_src.quant.rectified.PLAIN_VALUES", values)
        h, codes = encoded(y, norm, 0.3, bits)
        outputs = [codes.output(rows) for rows in (slice(0, 40), slice(40, 96))]
        sums = codes.gradient_sums(gradient)
        back = moved(codes, gradient, 1 / 96)
        results.append((h, codes.packed, torch.cat(outputs), sums, back))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_compiled_equals_plain_to_the_bit(bits):
    """Sums over rows, too: their order is fixed."""
    norm = normalization(width=COMPILED_WIDTH)
    y, gradient = (rows(96, seed, COMPILED_WIDTH) for seed in (2, 3))
    results = []
    for fused in (False, True):
        h, codes = encoded(y, norm, 0.3, bits, fused=fused)
        kept = codes.setting.side_means if bits == 1 else codes.ends
        sums, back = codes.gradient_sums(gradient), moved(codes, gradient, 1 / 96)
        output = codes.output(slice(16, 96))
        results.append((h, codes.packed, kept, sums, back, output))
    for plain, fused in zip(*results, strict=True):
        assert torch.equal(plain, fused)


@pytest.mark.parametrize("width", [24, 40])
def test_integers_of_a_compiled_kernel_wrap_around_at_every_width(width):
    """Without -fwrapv, columns from 16 on of 40 were garbage, and another each time."""
    zeros, ones = torch.zeros(width), torch.ones(width)
    norm = Normalization(zeros, ones, ones, zeros)
    y = torch.randn(64, width, generator=torch.Generator().manual_seed(4))
    setting = RectifiedSetting(RectifiedCoder(2, 8), norm, torch.zeros(()), None, False)
    plain = encode(y, SEED, setting)
    fused = replace(plain, setting=setting._replace(fused=True))
    for _ in range(4):
        assert torch.equal(plain.output(slice(0, 64)), fused.output(slice(0, 64)))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_rows", [5, 64, 67])
def test_codes_beside_an_output_are_those_that_make_it(num_rows, fused):
    norm = normalization(width=COMPILED_WIDTH)
    y = rows(num_rows, width=COMPILED_WIDTH)
    _, u, _, _ = reference(y, norm, 0.0)
    setting = RectifiedSetting(RectifiedCoder(2, 8), norm, torch.zeros(()), None, fused)
    before = y.clone()
    codes = encode_beside(y, u.relu(), SEED, setting)
    assert torch.equal(y, before)
    padded = torch.cat([y, y[-1:].expand(-num_rows % 8, -1)])
    other = encode(padded, SEED, setting)
    assert torch.equal(codes.packed, other.packed)
    assert torch.equal(codes.ends, other.ends)
    rows_read = codes.output(slice(0, len(padded)))
    affine = codes.normalized(slice(0, len(padded))) * norm.weight + norm.bias
    active = torch.cat([u, u[-1:].expand(-num_rows % 8, -1)]) > 0
    assert torch.equal(rows_read, torch.where(active, affine, 0.0))


def test_the_output_alone_says_what_is_active():
    """It was made with other roundings; a sign of ours would not be the mask."""
    norm = normalization(torch.ones(WIDTH), torch.zeros(WIDTH))
    y = rows(16)
    output = (torch.arange(16 * WIDTH).view(16, WIDTH) % 3 == 0).to(torch.float32)
    setting = RectifiedSetting(RectifiedCoder(4, 8), norm, torch.zeros(()), None, False)
    codes = encode_beside(y, output, SEED, setting)
    gradient = torch.ones(16, WIDTH)
    assert torch.equal(moved(codes, gradient) != 0, output > 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_noticed(bad):
    y = rows(24)
    y[9, 3] = bad
    _, codes = encoded(y, normalization(), 0.0, 2)
    assert not codes.is_finite
    ends = codes.ends.view(torch.bfloat16).view(-1, 2)
    assert torch.isfinite(ends).all(dim=1).tolist() == [True, False, True]
    _, codes = encoded(rows(24), normalization(), 0.0, 2)
    assert codes.is_finite


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_finite_or_noticed(bits):
    """Without BatchNorm, up to the largest float32; 5 reaches from the middle."""
    zero, one = torch.zeros(WIDTH), torch.ones(WIDTH)
    norm = Normalization(zero, one, one, zero)
    for largest in (0.99 * LARGEST_END, LARGEST_END, 3.4e38):
        y = rows(16).clamp(-1, 1) * largest
        y[0], y[1] = -largest, largest
        for seed in range(20):
            seed = torch.tensor(seed, dtype=torch.int32)
            _, codes = encoded(y, norm, 0.0, bits, seed=seed)
            assert codes.is_finite == (largest < LARGEST_END)
            if codes.is_finite:
                assert torch.isfinite(codes.output(slice(0, 16))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 8), r"bits must be one of \(1, 2, 4, 8\), got 3"),
        ((2, 6), "rows_per_block must be a multiple of 4 at 2 bits.* got 6"),
        ((4, 0), "rows_per_block must be a multiple of 2 at 4 bits.* got 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RectifiedCoder(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2])
def test_compiled_kernels_hold_a_few_runs_and_not_a_few_layers(bits):
    """A compiler left to itself holds up to four tensors of what it is given."""
    nodes, width = 4 * RUN_VALUES // WIDTH, WIDTH  # whose kernels are compiled
    y = torch.randn(nodes, width, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(width)
    normalization = Normalization(0 * ones, ones, ones, 0 * ones)
    means = torch.zeros(2, width) if bits == 1 else None
    setting = RectifiedSetting(
        RectifiedCoder(bits, 8), normalization, torch.tensor(0.5), means, fused=True
    )
    seed = torch.tensor(7, dtype=torch.int32)
    share = torch.tensor(1 / nodes)
    codes = encode(y.clone(), seed, setting)
    sums = codes.gradient_sums(y)
    codes.backpropagate(y.clone(), sums, share)
    cpu = torch.device("cpu")
    h, gradient = y.clone(), y.clone()
    again, encoding = measure_memory(lambda: encode(h, seed, setting), cpu)
    _, summing = measure_memory(lambda: codes.gradient_sums(y), cpu)
    _, passing = measure_memory(lambda: codes.backpropagate(gradient, sums, share), cpu)
    run = 4 * RUN_VALUES
    assert encoding.peak - encoding.held <= 4 * run
    assert summing.peak <= 4 * run
    assert passing.peak <= 5 * run  # four, and keys
    assert again.shape == codes.shape
