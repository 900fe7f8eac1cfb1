import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from pipeline_src.quant.blockwise import (
    PACKABLE_BITS,
    _compress_fused,
    blocks_per_packet,
    check_blocks,
    compress_blocks,
    count_blocks,
    decompress_blocks,
)
from pipeline_src.quant.noise import GOLDEN, wrap
from tests import oracles

SEED = torch.tensor(20231, dtype=torch.int32)


def uneven(bits: int) -> torch.Tensor:
    """Boundaries whose bins narrow towards the middle, as a clipped normal asks."""
    edges = torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    bent = edges.sign() * edges.abs() ** 1.3
    return ((bent + 1) / 2 * (2**bits - 1)).float()


def laws(bits):
    return [None] if bits == 1 else [None, uneven(bits)]


CASES = [(bits, law) for bits in PACKABLE_BITS for law in laws(bits)]
IDS = [f"{bits}-{'even' if law is None else 'uneven'}" for bits, law in CASES]


def round_trip(x, bits, block_size, law=None, seed=SEED, compile="false"):
    kept = compress_blocks(x, seed, bits, block_size, law, compile)
    return decompress_blocks(*kept, x.shape, bits, law, compile)


@settings(max_examples=60)
@given(
    case=st.sampled_from(CASES),
    block_size=st.sampled_from([1, 3, 8, 16, 21]),
    num_blocks=st.integers(1, 6),
    seed=st.integers(-(2**31), 2**31 - 1),
    values=st.integers(0, 2**32 - 1),
)
def test_packed_bytes_equal_the_scalar_oracle(
    case, block_size, num_blocks, seed, values
):
    """Same bytes and metadata as one-value-at-a-time code, to the bit."""
    bits, law = case
    generator = np.random.default_rng(values)
    in_packet = blocks_per_packet(bits, block_size)
    numel = block_size * in_packet * num_blocks
    x = generator.standard_normal(numel).astype(np.float32)
    x *= np.float32(10) ** generator.integers(-3, 4)
    packed, zero_point, scale = compress_blocks(
        torch.from_numpy(x),
        torch.tensor(seed, dtype=torch.int32),
        bits,
        block_size,
        law,
        "false",
    )
    codes_per_word = 8 // bits // in_packet
    words = block_size // codes_per_word
    edges = None if law is None else law.numpy()
    rows = x.reshape(-1, in_packet, block_size)
    for index, blocks in enumerate(rows):
        coded = [
            oracles.quantize_block(
                block, seed, index * in_packet + b, bits, edges, words, codes_per_word
            )
            for b, block in enumerate(blocks)
        ]
        codes = [one for one, _, _ in coded]
        expected = oracles.pack_blocks(codes, bits, words, codes_per_word)
        assert packed[index].tolist() == expected
        part = slice(index * in_packet, (index + 1) * in_packet)
        assert zero_point[part].float().tolist() == [z for _, z, _ in coded]
        assert scale[part].float().tolist() == [s for _, _, s in coded]


@pytest.mark.parametrize(("bits", "law"), CASES, ids=IDS)
def test_rounding_is_unbiased_and_its_variance_is_the_formula(bits, law):
    """Mean within 5 standard errors, variance (x - a)(b - x) within 5 of its own.

    One block is rounded n times. A rounded value is one of two edges a and b, so its
    fourth central moment is at most (b - a)**4 / 12, the largest of a two-point law.
    """
    n, block_size = 40_000, 16
    generator = torch.Generator().manual_seed(bits)
    block = torch.randn(block_size, generator=generator)
    x = block.repeat(n)
    kept = compress_blocks(x, SEED, bits, block_size, law, "false")
    decoded = decompress_blocks(*kept, x.shape, bits, law, "false").view(n, -1).double()

    zero_point, scale = kept[1][0].double(), kept[2][0].double()
    edges = torch.arange(2**bits) if law is None else law
    grid = zero_point + scale * edges.double()
    value = block.double()
    above = torch.searchsorted(grid, value, right=True).clamp(1, 2**bits - 1)
    lower, upper = grid[above - 1], grid[above]
    variance = (value - lower) * (upper - value)
    width = upper - lower
    # Noise takes 2**16 values; float32 arithmetic adds a few ulp of the position.
    resolution = width * 2.0**-17 + scale * 2**bits * 2.0**-22
    error = (decoded.mean(dim=0) - value).abs()
    assert torch.all(error <= 5 * (variance / n).sqrt() + resolution)
    spread = (decoded.var(dim=0) - variance).abs()
    assert torch.all(spread <= 5 * width**2 / math.sqrt(12 * n) + width * resolution)


# The kernel of 8 bits and uneven edges is the next test's. That of 4 takes longest to
# compile: as that of 2 it compares with edge after edge, with 14 instead of 2.
@pytest.mark.parametrize(
    ("bits", "law"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] >= 4), id=id)
        for case, id in zip(CASES[:-1], IDS[:-1], strict=True)
    ],
)
def test_compiled_equals_plain_to_the_bit(bits, law):
    """Whole packets and a padded tail, by the kernels of one size of a block."""
    generator = torch.Generator().manual_seed(3)
    block_size = 64
    for numel in (block_size * 9 + 5, block_size * 8):
        x = torch.randn(numel, generator=generator)
        plain = compress_blocks(x, SEED, bits, block_size, law, "false")
        fused = compress_blocks(x, SEED, bits, block_size, law, "true")
        for one, other in zip(plain, fused, strict=True):
            assert torch.equal(one, other)
        decoded = decompress_blocks(*plain, x.shape, bits, law, "false")
        assert torch.equal(
            decoded, decompress_blocks(*fused, x.shape, bits, law, "true")
        )


def test_a_loop_whose_hash_overflows_comes_to_its_end():
    """Without -fwrapv g++ 12 wrote codes past their tensor until the process died."""
    x = torch.randn(64 * 9 + 5, generator=torch.Generator().manual_seed(3))
    fused, plain = (round_trip(x, 8, 64, uneven(8), SEED, c) for c in ("true", "false"))
    assert torch.equal(fused, plain)


def test_one_compilation_serves_a_tail_with_padding_and_one_without():
    """Seconds each; the shape of the activation behind its blocks is none of it."""
    torch.compiler.reset()
    counts = []
    for num_rows, width in [(44, 63), (1100, 64), (1088, 126), (1088, 64)]:
        x = torch.zeros(num_rows, width)
        compress_blocks(x, SEED, 2, 63, None, "true")
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[-1]
    torch.compiler.reset()


def test_no_constant_of_the_compiled_hash_leaves_int32():
    """Triton refuses one; C++ takes it, so that equal bits would not show it."""
    torch.compiler.reset()
    x = torch.zeros(64 * 20)
    _, (code,) = run_and_get_code(
        lambda: _compress_fused(
            x.view(20, 1, 4, 16), torch.zeros(20, dtype=torch.int32), None, 2
        )
    )
    constants = [int(text) for text in re.findall(r"(?<![\w.])-?\d{9,}", code)]
    assert wrap(2 * GOLDEN) in constants
    assert all(-(2**31) <= constant < 2**31 for constant in constants)
    torch.compiler.reset()


def test_compiled_equals_plain_where_blocks_share_words():
    x = torch.randn(63 * 4 * 6, generator=torch.Generator().manual_seed(4))
    plain = compress_blocks(x, SEED, 2, 63, None, "false")
    fused = compress_blocks(x, SEED, 2, 63, None, "true")
    for one, other in zip(plain, fused, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", PACKABLE_BITS)
@settings(max_examples=30)
@given(data=st.data())
def test_values_stay_within_the_bin_that_holds_them(bits, data):
    """Any size, any block size: each value moves by at most one bin."""
    block_size = data.draw(st.integers(1, 70))
    numel = data.draw(st.integers(1, 400))
    offset = data.draw(st.sampled_from([0.0, -3.0, 1000.0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.randn(numel, generator=generator) + offset
    packed, zero_point, scale = compress_blocks(x, SEED, bits, block_size, None)
    decoded = decompress_blocks(packed, zero_point, scale, x.shape, bits, None)
    block = torch.arange(numel) // block_size
    one_bin = scale.float()[block]
    rounding = 2.0**-22 * (x.abs() + one_bin * 2**bits)
    assert torch.all((decoded - x).abs() <= one_bin + rounding)
    assert torch.all(zero_point.float()[block] <= x)
    top = zero_point.float() + scale.float() * (2**bits - 1)
    assert torch.all(top[block] >= x - rounding)


@pytest.mark.parametrize("bits", PACKABLE_BITS)
@pytest.mark.parametrize("block_size", [1, 16, 63, 126, 1024])
@pytest.mark.parametrize("numel", [1, 1000, 169_343 * 16])
def test_bytes_are_those_of_whole_packets(bits, block_size, numel):
    kept = compress_blocks(torch.ones(numel), SEED, bits, block_size, None, "false")
    blocks = count_blocks(numel, bits, block_size)
    assert blocks >= numel / block_size
    assert blocks - numel / block_size < blocks_per_packet(bits, block_size) + 1
    assert [part.nbytes for part in kept] == [
        blocks * block_size * bits // 8,
        2 * blocks,
        2 * blocks,
    ]


@pytest.mark.parametrize("bits", PACKABLE_BITS)
@pytest.mark.parametrize("constant", [0.0, -0.0, 1.0, -2.5, 2.0**-100, 3e38])
def test_constant_blocks_of_bfloat16_values_are_exact(bits, constant):
    x = torch.full((100,), constant).bfloat16().float()
    assert torch.equal(round_trip(x, bits, 16), x)


@pytest.mark.parametrize("bits", PACKABLE_BITS)
def test_other_constant_blocks_err_by_one_bfloat16_step_without_bias(bits):
    n = 40_000
    constant = math.pi
    decoded = round_trip(torch.full((n,), constant), bits, 16)
    step = 2.0**-6  # of bfloat16 between 2 and 4: 8 significant bits
    assert torch.all((decoded - constant).abs() <= step)
    tolerance = 5 * float(decoded.std()) / math.sqrt(n) + step * 2.0**-17 + 2.0**-20
    assert abs(float(decoded.double().mean()) - constant) <= tolerance


@pytest.mark.parametrize("bits", PACKABLE_BITS)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**11])
def test_scaling_by_a_power_of_two_leaves_codes_unchanged(bits, factor):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(5))
    packed, zero_point, scale = compress_blocks(x, SEED, bits, 32, None)
    other = compress_blocks(x * factor, SEED, bits, 32, None)
    assert torch.equal(packed, other[0])
    assert torch.equal(zero_point * factor, other[1])
    assert torch.equal(scale * factor, other[2])


def test_seeds_and_neighbouring_blocks_round_differently():
    x = torch.linspace(0, 1, 64).repeat(8)
    kept = compress_blocks(x, SEED, 2, 64, None)[0]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(kept))
    assert not torch.equal(kept, compress_blocks(x, SEED + 1, 2, 64, None)[0])
    assert torch.equal(kept, compress_blocks(x, SEED, 2, 64, None)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 17, 31])
def test_a_value_that_is_not_finite_marks_its_block_and_no_other(bad, where):
    x = torch.randn(96, generator=torch.Generator().manual_seed(6))
    x[32 + where] = bad
    scale = compress_blocks(x, SEED, 2, 32, None)[2]
    assert torch.isfinite(scale).tolist() == [True, False, True, True][: len(scale)]


def test_any_nan_pattern_is_seen():
    """A NaN whose mantissa is all ones must not overflow into a number."""
    x = torch.zeros(32)
    x.view(torch.int32)[3] = 0x7FFFFFFF
    assert not torch.isfinite(compress_blocks(x, SEED, 2, 32, None)[2]).any()


@pytest.mark.parametrize(
    ("bits", "block_size", "message"),
    [
        (3, 16, r"bits must be one of \(1, 2, 4, 8\), got 3"),
        (2, 0, "block_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(bits, block_size, message):
    with pytest.raises(ValueError, match=message):
        check_blocks(bits, block_size)
