"""Training is given the boundaries that the solver's file holds."""

import pytest
from made_up_records import made_up_boundaries

from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import write_dataset


@pytest.fixture
def boundaries_of(tmp_path):
    write_dataset(made_up_boundaries(), tmp_path / "boundaries.nc")
    return read_boundaries(tmp_path / "boundaries.nc")


def test_without_a_file_there_are_none():
    assert read_boundaries(None) is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("asked", "tabulated"), [(32, 32), (900, 1024), (9999, 4096)])
def test_boundaries_are_those_of_the_nearest_tabulated_size(
    boundaries_of, bits, asked, tabulated
):
    table = made_up_boundaries()["boundaries"].sel(bits=bits, block_size=tabulated)
    expected = tuple(float(value) for value in table.values[: 2**bits])
    assert boundaries_of(bits, asked) == expected


@pytest.mark.parametrize("block_size", [1, 3])
def test_boundaries_of_tiny_blocks_are_even(boundaries_of, block_size):
    assert boundaries_of(2, block_size) == (0.0, 1.0, 2.0, 3.0)


def test_bits_outside_the_table_are_refused(boundaries_of):
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4, 8\], got 3"):
        boundaries_of(3, 32)
