"""Adjacencies are the matrices of their edges; contradictions are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_graphs import dense, edge_lists

from pipeline_src.graphs.edges import whole_numbers
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.files import write_graph
from pipeline_src.graphs.graph import Graph, adjacency_from_edges
from pipeline_src.graphs.splits import index_tensor


@given(edge_lists(), st.booleans())
def test_adjacency_is_the_matrix_of_its_edges(edges, symmetrize):
    """Repeats count once; row = receiver; the transpose is kept or is the same."""
    num_nodes, source, target = edges
    adjacency = adjacency_from_edges(source, target, num_nodes, symmetrize=symmetrize)
    expected = np.zeros((num_nodes, num_nodes), dtype=int)
    expected[target, source] = 1
    if symmetrize:
        expected = np.maximum(expected, expected.T)
    np.testing.assert_array_equal(dense(adjacency), expected)
    assert adjacency.symmetric == (expected == expected.T).all()
    backward = adjacency.transposed or adjacency
    np.testing.assert_array_equal(dense(backward), expected.T)
    np.testing.assert_array_equal(adjacency.degree, expected.sum(axis=1))
    assert adjacency.num_entries == expected.sum() == adjacency.degree.sum()


@given(edge_lists())
def test_adjacency_ignores_the_order_of_edges(edges):
    num_nodes, source, target = edges
    order = np.random.default_rng(0).permutation(len(source))
    one = adjacency_from_edges(source, target, num_nodes, symmetrize=False)
    other = adjacency_from_edges(
        source[order], target[order], num_nodes, symmetrize=False
    )
    assert torch.equal(one.column, other.column)
    assert torch.equal(one.row_pointer, other.row_pointer)


def test_adjacency_counts_the_bytes_of_what_it_keeps():
    """int32: four bytes a pointer and an entry, twice when the transpose is kept."""
    edges = np.array([0, 0, 1]), np.array([1, 2, 2])
    assert adjacency_from_edges(*edges, 3).nbytes == 4 * (4 + 6)
    directed = adjacency_from_edges(*edges, 3, symmetrize=False)
    assert directed.nbytes == 2 * 4 * (4 + 3)
    assert directed.to("cpu").transposed.num_entries == 3


@pytest.mark.parametrize("node", [-1, 3])
def test_adjacency_refuses_unknown_nodes(node):
    with pytest.raises(ValueError, match=rf"target must lie in 0 \.\. 2 .*got {node}"):
        adjacency_from_edges(np.array([0]), np.array([node]), 3, symmetrize=False)


def test_adjacency_refuses_unequal_lists():
    with pytest.raises(ValueError, match=r"equal length, got shapes \(1,\) and \(2,\)"):
        adjacency_from_edges(np.array([0]), np.array([1, 2]), 3, symmetrize=False)


def with_rows(graph: Graph, row_pointer=None, column=None) -> Graph:
    changes = {"row_pointer": row_pointer, "column": column}
    kept = {name: value for name, value in changes.items() if value is not None}
    return replace(graph, adjacency=replace(graph.adjacency, **kept))


SOUND = synthetic_graph(num_nodes=20, num_edges=60)
POINTER, COLUMN = SOUND.adjacency.row_pointer, SOUND.adjacency.column
NOBODY = torch.tensor([], dtype=torch.int64)
LOOP = adjacency_from_edges(np.array([0]), np.array([1]), 20, symmetrize=False)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (replace(SOUND, features=SOUND.features.double()), "features: expected torch"),
        (replace(SOUND, features=SOUND.features * torch.nan), "features: expected fin"),
        (replace(SOUND, features=SOUND.features[:-1]), "labels: expected 19 nodes"),
        (replace(SOUND, labels=SOUND.labels.int()), "labels: expected torch.int64"),
        (replace(SOUND, num_classes=3), r"labels: expected values in 0 \.\. 2, got"),
        (replace(SOUND, test_index=SOUND.train_index), "each node once"),
        (replace(SOUND, train_index=NOBODY), "train_index: expected at least one node"),
        (
            replace(SOUND, validation_index=NOBODY),
            "validation_index: expected at least",
        ),
        (
            replace(SOUND, test_index=NOBODY),
            "test_index: expected at least one node to",
        ),
        (replace(SOUND, test_index=torch.tensor([20])), "test_index: expected values"),
        (with_rows(SOUND, column=COLUMN.long()), "column: expected a list of int32"),
        (with_rows(SOUND, column=COLUMN + 1), r"column: expected nodes in 0 \.\. 19"),
        (with_rows(SOUND, column=COLUMN.flip(0)), "column: expected nodes that incr"),
        (with_rows(SOUND, row_pointer=POINTER[:-1]), "row_pointer: expected 20 nodes"),
        (with_rows(SOUND, row_pointer=POINTER + 1), "row_pointer: expected to rise"),
        (replace(SOUND, adjacency=replace(LOOP, transposed=None)), "a symmetric one"),
        (replace(SOUND, adjacency=replace(LOOP, transposed=LOOP)), "its transpose"),
    ],
)
def test_a_graph_that_contradicts_itself_is_not_written(tmp_path, graph, message):
    with pytest.raises(ValueError, match=message):
        write_graph(graph, tmp_path / "graph.npz")
    assert not list(tmp_path.iterdir())


def test_graph_counts_every_byte():
    expected = 4 * 20 * 16 + 8 * 20 + 8 * 20 + 4 * (21 + 60)  # x, y, split, adjacency
    assert SOUND.nbytes == SOUND.to("cpu").nbytes == expected


WHOLE = [*("int8", "int16", "int32", "int64"), *("uint8", "uint16", "uint32", "uint64")]


@pytest.mark.parametrize("symmetrize", [True, False])
@pytest.mark.parametrize("target_type", [*WHOLE, "float16", "float32", "float64"])
@pytest.mark.parametrize("source_type", [*WHOLE, "float16", "float32", "float64"])
def test_edges_of_any_type_are_the_same_edges(source_type, target_type, symmetrize):
    """Where all are whole numbers; NumPy joins int64 and uint64 to float64."""
    source, target = np.array([0, 100, 7, 7]), np.array([100, 2, 0, 9])
    expected = adjacency_from_edges(source, target, 101, symmetrize=symmetrize)
    found = adjacency_from_edges(
        source.astype(source_type),
        target.astype(target_type),
        101,
        symmetrize=symmetrize,
    )
    assert torch.equal(found.column, expected.column)
    assert torch.equal(found.row_pointer, expected.row_pointer)


def test_edges_of_unsigned_type_are_right_where_floats_cannot_count():
    """A key of two nodes lies beyond 2**53, and no graph of that size is made."""
    large = 2**31 - 2
    assert large * 2**31 > 2**53
    source = np.array([large, large - 1], dtype=np.uint64)
    whole = whole_numbers("source", source)
    assert whole.dtype == np.int64
    assert whole.tolist() == [large, large - 1]


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (np.array([0.5]), ValueError, "source must hold whole numbers, got 0.5"),
        (np.array([np.nan]), ValueError, "source must hold whole numbers, got nan"),
        (np.array([np.inf]), ValueError, r"that int64 can, got inf"),
        (np.array([-1.0]), ValueError, r"source must lie in 0 \.\. 2 .*got -1"),
        (np.array([3], np.uint8), ValueError, r"source must lie in 0 .*got . \.\. 3"),
        (
            np.array([2**63], np.uint64),
            ValueError,
            r"int64 can, got 92233720",
        ),
        (
            np.array([2**64 - 1], np.uint64),
            ValueError,
            "that int64 can, got 18",
        ),
        (np.array([1e30]), ValueError, r"numbers that int64 can, got 1e\+30"),
        (np.array([True]), TypeError, "source must hold whole numbers, .* got bool"),
        (np.array([1 + 0j]), TypeError, "whole numbers, .* got complex128"),
        (np.array(["1"]), TypeError, "whole numbers, .* got <U1"),
        (np.array([1], object), TypeError, "whole numbers, .* got object"),
    ],
)
@pytest.mark.parametrize("symmetrize", [True, False])
def test_edges_that_are_no_node_numbers_are_refused(nodes, error, message, symmetrize):
    with pytest.raises(error, match=message):
        adjacency_from_edges(nodes, np.array([1]), 3, symmetrize=symmetrize)


@pytest.mark.parametrize("num_nodes", [-1, 2**31])
def test_more_nodes_than_int32_counts_are_refused(num_nodes):
    with pytest.raises(ValueError, match=rf"2147483647 \(int32\), got {num_nodes}"):
        adjacency_from_edges(np.array([0]), np.array([0]), num_nodes)


@pytest.mark.parametrize("kind", ["float64", "int64", "bool", "uint8"])
@pytest.mark.parametrize("num_nodes", [0, 1, 4])
def test_no_edges_are_a_graph_of_any_type(kind, num_nodes):
    none = np.empty(0, dtype=kind)
    adjacency = adjacency_from_edges(none, none, num_nodes)
    assert adjacency.num_nodes == num_nodes
    assert adjacency.num_entries == 0


def test_splits_of_any_type_are_the_same_and_fractions_are_refused():
    expected = index_tensor(np.array([1, 5, 3]))
    for kind in (*WHOLE, "float32", "float64"):
        assert torch.equal(index_tensor(np.array([1, 5, 3], dtype=kind)), expected)
    with pytest.raises(ValueError, match=r"nodes must hold whole numbers, got 1.5"):
        index_tensor(np.array([1.5, 2.0]))
