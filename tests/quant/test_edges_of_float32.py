"""Numbers near the ends of float32: what is read is finite, or says that it is not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.feature_store import (
    METADATA_TYPES,
    RANGES,
    FeatureStore,
    RowPacking,
)
from pipeline_src.quant.masked import encode_masked
from pipeline_src.quant.noise import _midpoint
from pipeline_src.quant.rectified import Normalization
from pipeline_src.quant.segment_store import pack_segments

SEED = torch.tensor(3, dtype=torch.int32)
LARGEST = torch.finfo(torch.float32).max
BITS = (1, 2, 4, 8)
REPORTED = [1e38, 2e38, 3e38, 3.4e38]
ROWS = [
    REPORTED,
    [-LARGEST, LARGEST, 0.0, 1.0],
    [LARGEST] * 4,
    [-LARGEST] * 4,
    [-LARGEST, 0.0, 0.0, 0.0],
    [0.0, 1.0, 2.0, LARGEST],
    [0.0, 1e38, 2e38, 3e38],
    [-LARGEST, -3.3e38, -3.39e38, -LARGEST],
]
large = st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=4, max_size=4).map(
    list
)


def check_compressor(row, bits):
    x = torch.tensor([row])
    kept = Compressor(bits, 4, compile="false").compress(x, SEED)
    assert not kept.is_finite or torch.isfinite(kept.decompress()).all()
    return kept


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("row", ROWS)
def test_finite_blocks_are_read_as_finite_or_flagged(row, bits):
    check_compressor(row, bits)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=60)
@given(row=large)
def test_any_finite_block_is_read_as_finite_or_flagged(bits, row):
    """And nothing is flagged whose range, widened outwards, float32 holds."""
    kept = check_compressor(row, bits)
    if max(map(abs, row)) < LARGEST / 4:
        assert kept.is_finite


@pytest.mark.parametrize("row", ROWS)
def test_masked_codes_are_read_as_finite_or_flagged(row):
    y = torch.tensor([row])
    zero, one = torch.zeros(4), torch.ones(4)
    normalization = Normalization(zero, one, one, zero)
    compressor = Compressor(2, 4, compile="false")
    codes = encode_masked(y, SEED, 0, normalization, 0.0, compressor)
    assert not codes.is_finite or torch.isfinite(codes.output()).all()


@pytest.mark.parametrize("metadata", METADATA_TYPES)
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("range", RANGES)
@settings(max_examples=25)
@given(drawn=large)
def test_rows_are_read_as_finite_or_as_nan_throughout(range, bits, metadata, drawn):
    """A row of infinities, or of some, would look like values."""
    for row in (*ROWS, drawn, [abs(value) for value in drawn]):
        packing = RowPacking(range, 1, metadata, "false")
        read = FeatureStore.pack(torch.tensor([row]), (bits,), packing).decode()
        finite = torch.isfinite(read)
        assert finite.all() or read.isnan().all(), (row, read)
        # A grid is wider than its values by 2**-7 of the range and of an end at most.
        if max(row) - min(row) < LARGEST / 2 and max(map(abs, row)) < LARGEST / 2:
            assert finite.all(), row


@pytest.mark.parametrize("metadata", METADATA_TYPES)
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_segments_are_read_as_finite_or_as_nan_throughout(bits, metadata):
    for row in ROWS:
        values, owner = torch.tensor(row)[:, None], torch.zeros(4, dtype=torch.int64)
        ends = torch.tensor([0, 4])
        kept = pack_segments(values, ends, owner, bits, None, metadata, "false")
        read = kept.decode(owner)
        assert torch.isfinite(read).all() or read.isnan().all(), (row, read)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("exponent", [-149, -140, -127, -122, -121])
def test_ranges_too_small_to_round_without_bias_are_read_as_their_minimum(
    bits, exponent
):
    """Their scale is at most 2**-120, and the error below 2**bits times that."""
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]]) * 2.0**exponent
    kept = Compressor(bits, 4, compile="false").compress(x, SEED)
    if 3 * 2.0**exponent / (2**bits - 1) * (1 + 2.0**-6) < 2.0**-120:
        assert not kept.decompress().any()
    assert (kept.decompress() - x).abs().max() < 2**bits * 2.0**-120
    stored = FeatureStore.pack(x, (bits,), RowPacking(compile="false")).decode()
    assert (stored - x).abs().max() < 2**bits * 2.0**-120


@pytest.mark.parametrize("bits", BITS)
def test_just_above_that_scale_rounding_is_without_bias(bits):
    """The mean over n draws of the second value, a third of the way, in bins."""
    n, num_bins = 4000, 2**bits - 1
    unit = 2.0**-118
    row = torch.tensor([0.0, unit / 3, unit * num_bins, 0.0])
    x = row.repeat(n, 1)
    kept = Compressor(bits, 4, compile="false").compress(x, SEED)
    bins = kept.decompress()[:, 1].double() / unit
    bound = 5 * math.sqrt(0.25 / n) * (1 + 2.0**-6)  # a bin is rounded outwards
    assert abs(bins.mean() - 1 / 3) <= bound


@pytest.mark.parametrize("bits", BITS)
def test_noise_of_16_bits_resolves_a_bin_as_its_essay_says(bits, rng):
    """All 2**16 values of the noise for each position: the exact mean of its code."""
    num_bins = 2**bits - 1
    noise = _midpoint(torch.arange(2**16, dtype=torch.int32))
    worst = 0.0
    for _ in range(300):
        zero_point, scale = rng.normal(), rng.uniform(0.01, 10.0)
        zero_point, scale = torch.tensor([zero_point, scale], dtype=torch.bfloat16).to(
            torch.float32
        )
        x = zero_point + scale * num_bins * float(rng.uniform())
        exact = (x.double() - zero_point.double()) / scale.double()
        # The lines of blockwise._compress.
        position = (x - zero_point) * (1.0 / scale)
        code = torch.clamp((position + noise).to(torch.int32), 0, num_bins)
        worst = max(worst, abs(float(code.double().mean() - exact)))
    assert worst <= (1 + num_bins / 32) * 2.0**-17
    # The bound is not idle: 8 bits need more than the half interval of the noise.
    if bits == 8:
        assert worst > 2.0**-17
