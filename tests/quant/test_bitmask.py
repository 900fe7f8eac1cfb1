import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline_src.quant.bitmask import mask_gradient, pack_mask

masks = hnp.arrays(
    np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
)


def gradient_like(mask):
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))


@settings(max_examples=100)
@given(mask=masks, factor=st.sampled_from([1.0, 2.0, 1 / 0.7]))
def test_masked_gradient_equals_plain_boolean_arithmetic(mask, factor):
    """Any shape, the empty one too: gradient times factor where true, else 0."""
    mask = torch.from_numpy(mask)
    gradient = gradient_like(mask)
    packed = pack_mask(mask, "false")
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    masked = mask_gradient(gradient, packed, factor, "false")
    assert torch.equal(masked, mask * (gradient * factor))


@given(mask=hnp.arrays(np.bool_, st.integers(0, 70)))
def test_packed_bytes_equal_the_scalar_oracle(mask):
    """Bit j of byte w stands for value j * num_bytes + w; what is missing is 0."""
    num_bytes = math.ceil(len(mask) / 8)
    expected = [
        sum(
            2**j
            for j in range(8)
            if j * num_bytes + w < len(mask) and mask[j * num_bytes + w]
        )
        for w in range(num_bytes)
    ]
    assert pack_mask(torch.from_numpy(mask), "false").tolist() == expected


def test_a_masked_value_is_zero_even_where_the_gradient_is_not_finite():
    mask = torch.tensor([True, False, False])
    gradient = torch.tensor([math.inf, math.inf, math.nan])
    masked = mask_gradient(gradient, pack_mask(mask, "false"), compile="false")
    assert masked.tolist() == [math.inf, 0.0, 0.0]


def test_transposed_masks_and_gradients_keep_their_places():
    """What is packed is the mask as it reads, not as it lies in memory."""
    mask = gradient_like(torch.empty(5, 7)).T > 0
    gradient = gradient_like(mask)
    packed = pack_mask(mask, "false")
    assert torch.equal(
        mask_gradient(gradient, packed, compile="false"), gradient * mask
    )
    transposed = gradient.T.contiguous().T
    assert torch.equal(
        mask_gradient(transposed, packed, compile="false"), gradient * mask
    )


@pytest.mark.parametrize("numel", [4096, 1003])
def test_compiled_equals_plain_to_the_bit(numel):
    mask = gradient_like(torch.empty(numel)) > 0
    gradient = gradient_like(mask)
    packed = pack_mask(mask, "true")
    assert torch.equal(packed, pack_mask(mask, "false"))
    masked = mask_gradient(gradient, packed, 1 / 0.7, "true")
    assert torch.equal(masked, mask_gradient(gradient, packed, 1 / 0.7, "false"))
