"""The lossless rival: nothing is lost, and the published sizes come out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_archives import published

from pipeline_src.graphs.raw import read_raw_graph
from pipeline_src.quant.sparse_rows import SparseRows


@given(
    num_rows=st.integers(0, 6),
    num_features=st.integers(1, 9),
    kind=st.sampled_from(["words", "normalised", "weights"]),
    seed=st.integers(0, 2**31),
)
def test_decoding_gives_the_matrix_itself(num_rows, num_features, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_features, generator=generator).clamp(min=0)
    if kind != "weights":
        x = (x > 0).float()
    if kind == "normalised":
        x = x / x.sum(dim=1, keepdim=True).clamp(min=1)
    kept = SparseRows.of(x)
    assert torch.equal(kept.decode(), x)
    entries = int((x != 0).sum())
    values = 0 if kept.values is None else 4 * entries
    assert kept.nbytes == 4 * (num_rows + 1) + 2 * entries + values
    if kind != "weights":
        assert kept.values is None


def test_wide_matrices_take_int32_columns():
    x = torch.zeros(1, 2**15 + 1)
    x[0, -1] = 1.0
    kept = SparseRows.of(x)
    assert kept.column.dtype == torch.int32
    assert torch.equal(kept.decode(), x)


@pytest.mark.parametrize(
    ("graph", "source", "nbytes", "ratio"),
    [("cora", "Cora", 109_268, 142), ("citeseer", "CiteSeer", 223_642, 220)],
)
def test_published_bags_of_words_shrink_as_the_reference_says(
    graph, source, nbytes, ratio
):
    """Bytes and rounded ratio of the reference; real files."""
    features = read_raw_graph(graph, published(source)).features
    kept = SparseRows.of(features)
    assert kept.nbytes == nbytes
    assert round(features.nbytes / kept.nbytes) == ratio
    assert torch.equal(kept.decode(), features)
