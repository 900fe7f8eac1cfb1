"""What rows become on their way: bytes by the formula, values without bias."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.distributed.wire import Wire

SEED = torch.tensor(3, dtype=torch.int32)


def rows(num_rows, width):
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))


@settings(max_examples=40)
@given(
    num_rows=st.integers(0, 9),
    width=st.integers(1, 40),
    bits=st.sampled_from([1, 2, 4, 8, 32]),
)
def test_a_message_has_the_bytes_of_the_books_and_the_rows_back(num_rows, width, bits):
    wire, x = Wire(bits, "false"), rows(num_rows, width)
    message = wire.encode(x, SEED)
    assert message.dtype == torch.uint8
    assert message.shape == (num_rows, wire.row_bytes(width))
    found = wire.decode(message, width)
    assert found.shape == x.shape
    if bits == 32:
        assert torch.equal(found, x)
        return
    smallest, largest = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    # The ends rounded outwards to bfloat16.
    widened = (largest - smallest + 2.0**-7 * smallest.abs()) * (1 + 2.0**-7)
    assert ((found - x).abs() <= widened / (2**bits - 1) * (1 + 2.0**-20)).all()


@settings(max_examples=40)
@given(width=st.integers(1, 40), bits=st.sampled_from([1, 2, 4, 8]))
def test_rows_do_not_depend_on_their_neighbours(width, bits):
    """So that each receiver can read the rows that are meant for it."""
    wire, x = Wire(bits, "false"), rows(6, width)
    first = wire.encode(x[:3], SEED)
    assert torch.equal(wire.encode(x, SEED)[:3], first)
    decoded = wire.decode(wire.encode(x, SEED), width)
    assert torch.equal(wire.decode(first, width), decoded[:3])


def test_two_bits_of_128_columns_take_a_fourteenth():
    assert Wire().row_bytes(128) / Wire(2).row_bytes(128) > 14


def test_rows_of_whole_codes_arrive_as_they_are():
    """Values that are the codes themselves need no rounding."""
    x = torch.tensor([[0.0, 1, 2, 3, 3, 0], [5, 5, 5, 5, 5, 5]])
    wire = Wire(2, "false")
    assert torch.equal(wire.decode(wire.encode(x, SEED), 6), x)


@pytest.mark.parametrize("bits", [0, 3, 16, 64])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=r"one of \(1, 2, 4, 8\), or 32 for float32"):
        Wire(bits)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bits, value):
    x = rows(3, 8)
    x[1, 2] = value
    found = Wire(bits, "false").decode(Wire(bits, "false").encode(x, SEED), 8)
    assert found[[0, 2]].isfinite().all()
    assert not found[1].isfinite().all()
