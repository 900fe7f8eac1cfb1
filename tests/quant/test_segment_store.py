"""Attention values in segments: an oracle per segment, bytes, plain and compiled."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline_src.quant.feature_store import METADATA_TYPES, FeatureStore, RowPacking
from pipeline_src.quant.segment_store import pack_segments

PACKED = (1, 2, 4, 8, 16)
LENGTHS = torch.tensor([1, 5, 2, 17, 3, 1, 9])
POINTER = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
OWNER = torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS)
HEADS = 3


def values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(OWNER), HEADS, generator=generator)


@pytest.mark.parametrize("metadata", METADATA_TYPES)
@pytest.mark.parametrize("bits", PACKED)
def test_a_segment_of_a_head_is_a_row_of_the_feature_store(bits, metadata):
    """Same formula, same bits: each segment stored alone as one row."""
    x = values()
    packed = pack_segments(x, POINTER, OWNER, bits, None, metadata, "false")
    decoded = packed.decode(OWNER)
    recipe = RowPacking(metadata=metadata, compile="false")
    for segment in range(len(LENGTHS)):
        owned = torch.eq(OWNER, segment)
        rows = x[owned].T.contiguous()
        alone = FeatureStore.pack(rows, (bits,), recipe).decode()
        assert torch.equal(decoded[owned], alone.T)


@pytest.mark.parametrize("bits", PACKED)
def test_a_shared_range_is_a_row_of_all_values(bits):
    x = values()
    low, high = torch.aminmax(x, dim=0, keepdim=True)
    packed = pack_segments(x, POINTER, OWNER, bits, (low, high), compile="false")
    rows = x.T.contiguous()
    alone = FeatureStore.pack(rows, (bits,), RowPacking(compile="false")).decode()
    assert torch.equal(packed.decode(OWNER), alone.T)


@pytest.mark.parametrize("bits", PACKED)
def test_single_and_constant_segments_are_exact(bits):
    x = torch.full((len(OWNER), HEADS), 0.3) / LENGTHS[OWNER, None]
    decoded = pack_segments(x, POINTER, OWNER, bits, compile="false").decode(OWNER)
    assert torch.equal(decoded, x)


@pytest.mark.parametrize("metadata", METADATA_TYPES)
@pytest.mark.parametrize("bits", PACKED)
def test_nbytes_is_the_formula(bits, metadata):
    """Heads of whole bytes, and two numbers per range and head."""
    packed = pack_segments(values(), POINTER, OWNER, bits, None, metadata, "false")
    words, size = -(-len(OWNER) * bits // 8), {torch.float32: 4, torch.bfloat16: 2}
    metadata_bytes = 2 * size[metadata] * HEADS * len(LENGTHS)
    assert packed.nbytes == HEADS * words + metadata_bytes
    parts = (packed.words, packed.zero_point, packed.scale)
    assert packed.nbytes == sum(p.untyped_storage().nbytes() for p in parts)


@pytest.mark.parametrize("metadata", METADATA_TYPES)
@pytest.mark.parametrize("bits", [1, 4])
def test_compiled_equals_plain_to_the_bit(bits, metadata):
    plain, compiled = (
        pack_segments(values(), POINTER, OWNER, bits, None, metadata, choice)
        for choice in ("false", "true")
    )
    assert torch.equal(plain.words, compiled.words)
    assert torch.equal(plain.decode(OWNER), compiled.decode(OWNER))


def test_one_compilation_decodes_any_number_of_values_and_segments():
    """With padding and without, and where both numbers are equal."""
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for lengths in ([3] * 8, [1] * 24, [5, 2, 4], [2] * 500):
        lengths = torch.tensor(lengths)
        pointer = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        x = torch.rand(len(owner), HEADS, generator=torch.Generator().manual_seed(1))
        packed = pack_segments(x, pointer, owner, 2, compile="false")
        compiled = replace(packed, compile="true").decode(owner)
        assert torch.equal(compiled, packed.decode(owner))
        assert compiled.shape == x.shape
    assert counters["stats"]["unique_graphs"] == before + 1
    torch.compiler.reset()
