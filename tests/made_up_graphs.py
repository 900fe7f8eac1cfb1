"""Strategies for edges and graphs, and what it means that two graphs are the same."""

import numpy as np
import torch
from hypothesis import strategies as st

from pipeline_src.graphs.graph import Adjacency, Graph, adjacency_from_edges
from pipeline_src.graphs.splits import stratified_split


@st.composite
def edge_lists(draw, max_nodes=12):
    """Number of nodes, sources, targets; loops, repeats and lonely nodes occur."""
    num_nodes = draw(st.integers(1, max_nodes))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=40))
    source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    return num_nodes, source, target


@st.composite
def small_graphs(draw):
    num_nodes, source, target = draw(edge_lists())
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_features, num_classes = draw(st.integers(0, 9)), draw(st.integers(1, 4))
    kept = generator.random((num_nodes, num_features)) < draw(st.sampled_from([0.1, 1]))
    features = kept * generator.standard_normal(kept.shape)
    labels = generator.integers(0, num_classes, num_nodes)
    return Graph(
        name=draw(st.text(max_size=5).filter(lambda name: not name.endswith("\0"))),
        features=torch.from_numpy(features.astype(np.float32)),
        labels=torch.from_numpy(labels),
        adjacency=adjacency_from_edges(
            source, target, num_nodes, symmetrize=draw(st.booleans())
        ),
        num_classes=num_classes,
        **stratified_split(labels, seed=0),
    )


def dense(adjacency: Adjacency) -> np.ndarray:
    """The adjacency as a matrix of zeros and ones, entry by entry."""
    matrix = np.zeros((adjacency.num_nodes, adjacency.num_nodes), dtype=int)
    for node in range(adjacency.num_nodes):
        start, stop = adjacency.row_pointer[node : node + 2].tolist()
        for sender in adjacency.column[start:stop].tolist():
            matrix[node, sender] += 1
    return matrix


def tensors(graph: Graph) -> dict[str, torch.Tensor]:
    backward = graph.adjacency.transposed or graph.adjacency
    return {
        "features": graph.features,
        "labels": graph.labels,
        "train_index": graph.train_index,
        "validation_index": graph.validation_index,
        "test_index": graph.test_index,
        "row_pointer": graph.adjacency.row_pointer,
        "column": graph.adjacency.column,
        "transposed_row_pointer": backward.row_pointer,
        "transposed_column": backward.column,
    }


def assert_same(one: Graph, other: Graph) -> None:
    assert (one.name, one.num_classes) == (other.name, other.num_classes)
    assert one.adjacency.symmetric == other.adjacency.symmetric
    for name, tensor in tensors(one).items():
        assert tensor.dtype == tensors(other)[name].dtype, name
        assert torch.equal(tensor, tensors(other)[name]), name
