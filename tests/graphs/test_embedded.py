"""Embedded and synthetic graphs: exact counts, and neighbours worth looking at."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_graphs import assert_same, dense
from sklearn.linear_model import LogisticRegression

from pipeline_src.graphs.embedded import (
    DIGITS_NEIGHBORS,
    EMBEDDED_GRAPHS,
    arxiv_shape,
    digits_graph,
    flickr_shape,
    scaled_shape,
    synthetic_graph,
)
from pipeline_src.graphs.graph import Graph, check_graph
from pipeline_src.graphs.planted import TAIL
from pipeline_src.graphs.sizes import GRAPH_SIZES


def mean_of_neighbors(graph: Graph, x: np.ndarray) -> np.ndarray:
    row_pointer, column = graph.adjacency.row_pointer, graph.adjacency.column
    rows = sp.csr_array(
        (np.ones(len(column)), column, row_pointer),
        shape=(graph.num_nodes, graph.num_nodes),
    )
    return (rows @ x) / graph.adjacency.degree.clamp(min=1).numpy()[:, None]


@settings(max_examples=40, deadline=None)
@given(
    num_nodes=st.integers(5, 60),  # of five in a row one validates and one tests
    density=st.floats(0, 1),
    num_classes=st.integers(1, 5),
    num_features=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_synthetic_counts_are_exact(
    num_nodes, density, num_classes, num_features, seed
):
    """Up to half of all pairs: no loop, no repeat, every class, the same every time."""
    num_classes = min(num_classes, num_nodes)
    num_edges = 2 * int(density * (num_nodes * (num_nodes - 1) // 4))
    arguments = (num_nodes, num_edges, num_features, num_classes)
    graph = synthetic_graph(*arguments, seed=seed)
    check_graph(graph)
    assert graph.features.shape == (num_nodes, num_features)
    assert graph.adjacency.num_entries == num_edges
    assert graph.adjacency.symmetric
    assert not dense(graph.adjacency).diagonal().any()
    assert len(graph.labels.unique()) == graph.num_classes == num_classes
    assert_same(graph, synthetic_graph(*arguments, seed=seed))


def test_synthetic_seeds_differ():
    one, other = synthetic_graph(seed=0), synthetic_graph(seed=1)
    assert not torch.equal(one.adjacency.column, other.adjacency.column)
    assert not torch.equal(one.features, other.features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_edges": 2401}, "must be even, got 2401"),
        ({"num_nodes": 10, "num_edges": 46}, r"0 to 22 undirected edges .* got 23"),
        ({"num_classes": 301}, r"num_classes must be 1 \.\. 300, got 301"),
        ({"num_train": 10}, "give both or neither, got 10 and None"),
        ({"num_train": 200, "num_validation": 101}, r"0 \.\. 300 .* got 200 \+ 101"),
    ],
)
def test_synthetic_refuses_the_impossible(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_graph(**arguments)


@pytest.mark.parametrize(
    ("make", "counts", "split"),
    [
        (arxiv_shape, (169_343, 2_315_598, 128, 40), (90_941, 29_799, 48_603)),
        (flickr_shape, (89_250, 899_756, 500, 7), (44_625, 22_312, 22_313)),
        (
            partial(scaled_shape, "nodes_30k"),
            (30_000, 410_220, 128, 40),
            (16_111, 5_279, 8_610),
        ),
    ],
)
def test_published_counts(make, counts, split):
    """Counts exact; degrees fall as a power law; the graph is sound."""
    graph = make()
    adjacency = graph.adjacency
    assert counts == (
        graph.num_nodes,
        adjacency.num_entries,
        graph.num_features,
        graph.num_classes,
    )
    indices = graph.train_index, graph.validation_index, graph.test_index
    assert split == tuple(len(index) for index in indices)
    check_graph(graph)
    assert graph.name in EMBEDDED_GRAPHS

    # The share of nodes above a degree t falls as t ** -TAIL: from t = 4 to 16 times
    # the mean by 4 ** -TAIL. Both counts are Poisson-like, so allow 5 deviations.
    degree = adjacency.degree.double()
    above, far_above = (int((degree > k * degree.mean()).sum()) for k in (4, 16))
    expected = above * 4**-TAIL
    assert abs(far_above - expected) <= 5 * np.sqrt(expected + above * 16**-TAIL)
    assert degree.median() < degree.mean() / 1.5 < degree.max() / 100


def test_large_shapes_have_the_published_counts():
    """Too large to draw in a test: their counts alone."""
    reddit = GRAPH_SIZES["reddit_shape"]
    assert (reddit.num_nodes, reddit.num_entries) == (232_965, 114_615_892)
    assert (reddit.num_features, reddit.num_classes) == (602, 41)
    assert reddit.num_nodes - reddit.num_train - reddit.num_validation == 55_703
    assert GRAPH_SIZES["products_shape"].num_entries == 2 * 61_859_140
    assert GRAPH_SIZES["products_shape"].num_nodes == 2_449_029


@pytest.mark.parametrize("name", sorted(set(EMBEDDED_GRAPHS) - {"digits"}))
def test_shapes_can_be_drawn(name):
    """Even, at most half of all pairs, and a split that leaves test nodes."""
    sizes = GRAPH_SIZES[name]
    assert sizes.num_entries % 2 == 0
    assert sizes.num_entries // 2 <= sizes.num_nodes * (sizes.num_nodes - 1) // 4
    assert sizes.num_train + sizes.num_validation < sizes.num_nodes


@pytest.mark.parametrize("name", [n for n in GRAPH_SIZES if n.startswith("nodes")])
def test_scaled_shapes_have_arxivs_degree_and_shares(name):
    """Up to half a pair, half a node of rounding."""
    sizes, arxiv = GRAPH_SIZES[name], GRAPH_SIZES["arxiv_shape"]
    scale = sizes.num_nodes / arxiv.num_nodes
    assert abs(sizes.num_entries - scale * arxiv.num_entries) <= 1
    assert abs(sizes.num_train - scale * arxiv.num_train) <= 0.5
    assert abs(sizes.num_validation - scale * arxiv.num_validation) <= 0.5
    widths = sizes.num_features, sizes.num_classes
    assert widths == (arxiv.num_features, arxiv.num_classes)


def test_digits_are_joined_to_their_nearest():
    """Oracle: all pixels' distances. Nobody nearer than the tenth is left out."""
    graph = digits_graph()
    assert (graph.num_nodes, graph.num_features, graph.num_classes) == (1797, 64, 10)
    assert [len(i) for i in (graph.train_index, graph.test_index)] == [1079, 359]
    assert 0 <= graph.features.min() < graph.features.max() == 1
    check_graph(graph)
    distance = torch.cdist(graph.features.double(), graph.features.double())
    distance = (distance * 16).square().round().fill_diagonal_(torch.inf)
    tenth = distance.kthvalue(DIGITS_NEIGHBORS, dim=1).values
    joined = torch.from_numpy(dense(graph.adjacency)).bool()
    nearer = distance < tenth[:, None]
    assert (joined | ~(nearer | nearer.T)).all()
    reach = torch.maximum(tenth[:, None], tenth[None, :])
    assert (distance[joined] <= reach[joined]).all()
    assert graph.adjacency.degree.min() >= DIGITS_NEIGHBORS


@pytest.mark.parametrize(
    "graph",
    [
        digits_graph(),
        synthetic_graph(num_nodes=2000, num_edges=20_000, num_classes=6),
    ],
    ids=["digits", "synthetic"],
)
def test_neighbors_help(graph):
    """A linear classifier gains from the neighbours' mean, and is not perfect.

    Paired: of the nodes that only one of the two gets right, more than half by 2
    standard errors are those of the classifier that sees neighbours.
    """
    own = graph.features.numpy()
    near = np.hstack([own, mean_of_neighbors(graph, own)])
    train, labels = graph.train_index.numpy(), graph.labels.numpy()
    unseen = torch.cat([graph.validation_index, graph.test_index]).numpy()
    alone, helped = (
        LogisticRegression(max_iter=300).fit(x[train], labels[train]).predict(x[unseen])
        == labels[unseen]
        for x in (own, near)
    )
    gained, lost = (helped & ~alone).sum(), (alone & ~helped).sum()
    assert gained - lost > 2 * np.sqrt(gained + lost)
    assert not helped.all()
