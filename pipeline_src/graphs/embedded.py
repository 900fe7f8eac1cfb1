"""Graphs that need no download: real digits, and synthetic ones of any size.

`digits` is real and small: accuracies on it mean something. `arxiv_shape` and
`flickr_shape` have exactly the published counts of ogbn-arxiv and Flickr: bytes and
seconds measured on them are those of the real graphs, which depend on counts and
degrees, not on what the features say. Their accuracies are not comparable with
published ones. `reddit_shape` and `products_shape` have those of Reddit and
ogbn-products and want a machine with more memory; `nodes_10k` to `nodes_1m` are
ogbn-arxiv made smaller and larger, to see how costs grow with a graph.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from pipeline_src.graphs.graph import Graph, adjacency_from_edges
from pipeline_src.graphs.planted import planted_features, planted_labels, planted_pairs
from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.graphs.splits import split_by_count, stratified_split

DIGITS_NEIGHBORS = 10
DIGITS_SPLIT_SEED = 0


def digits_graph() -> Graph:
    """The 1,797 handwritten digits of scikit-learn, each joined to its 10 nearest.

    A real graph that needs no network. Distances between the 64 pixels (integers 0
    to 16) are exact integers and ties go to the smaller node number, so the graph is
    the same on every machine. Features are pixels divided by 16.
    """
    from sklearn.datasets import load_digits  # slow to import, needed only here

    pixels, digit = load_digits(return_X_y=True)
    pixels, num_nodes = pixels.astype(np.int64), len(digit)
    square = (pixels**2).sum(axis=1)
    distance = square[:, None] + square - 2 * (pixels @ pixels.T)
    np.fill_diagonal(distance, distance.max() + 1)
    key = distance * num_nodes + np.arange(num_nodes)
    nearest = np.argpartition(key, DIGITS_NEIGHBORS)[:, :DIGITS_NEIGHBORS]
    node = np.repeat(np.arange(num_nodes), DIGITS_NEIGHBORS)
    return Graph(
        name="digits",
        features=torch.from_numpy((pixels / 16).astype(np.float32)),
        labels=torch.from_numpy(digit.astype(np.int64)),
        adjacency=adjacency_from_edges(nearest.ravel(), node, num_nodes),
        num_classes=10,
        **stratified_split(digit, DIGITS_SPLIT_SEED),
    )


def synthetic_graph(
    num_nodes: int = 300,
    num_edges: int = 2400,  # directed entries of the symmetric graph, hence even
    num_features: int = 16,
    num_classes: int = 4,
    *,
    num_train: int | None = None,  # None: stratified 60/20/20, as for num_validation
    num_validation: int | None = None,  # the remaining nodes are the test nodes
    homophily: float = 0.6,  # share of partners drawn inside the node's own class
    separation: float = 1.5,  # distance of class centres from 0, in noise deviations
    seed: int = 0,
    name: str = "synthetic",
) -> Graph:
    """A graph of exactly these counts: planted classes, heavy-tailed degrees.

    No loops, no repeated edges. See graphs/planted.py for the law it is drawn from.

    Raises:
        ValueError: if num_edges is odd or too dense, if there are fewer nodes than
            classes, or if only one of num_train and num_validation is given.

    >>> graph = synthetic_graph(num_nodes=50, num_edges=200, seed=1)
    >>> graph.num_nodes, graph.adjacency.num_entries, graph.adjacency.symmetric
    (50, 200, True)
    """
    if num_edges % 2:
        raise ValueError(
            f"num_edges counts both directions and must be even, got {num_edges}"
        )
    if not 1 <= num_classes <= num_nodes:
        raise ValueError(f"num_classes must be 1 .. {num_nodes}, got {num_classes}")
    generator = np.random.default_rng(seed)
    labels = planted_labels(num_nodes, num_classes, generator)
    smaller, larger = planted_pairs(labels, num_edges // 2, homophily, generator)
    features = planted_features(
        labels, num_classes, num_features, separation, generator
    )
    if num_train is None and num_validation is None:
        split = stratified_split(labels, seed)
    else:
        split = split_by_count(num_nodes, num_train, num_validation, generator)
    return Graph(
        name=name,
        features=torch.from_numpy(features),
        labels=torch.from_numpy(labels),
        adjacency=adjacency_from_edges(smaller, larger, num_nodes),
        num_classes=num_classes,
        **split,
    )


def arxiv_shape() -> Graph:
    """Synthetic, with every count of symmetrised ogbn-arxiv.

    1,166,243 citations become 1,157,799 undirected pairs when the 8,444 that run both
    ways or twice are merged, none of them a loop: 2,315,598 directed entries, as
    published reports that call to_undirected on it state.
    """
    return _of_known_size("arxiv_shape", homophily=0.65, separation=2.0)


def flickr_shape() -> Graph:
    """Synthetic, with every count of GraphSAINT's Flickr.

    89,250 nodes, 899,756 directed entries (symmetric as shipped), split 50/25/25.
    """
    return _of_known_size("flickr_shape", homophily=0.4, separation=1.0)


def reddit_shape() -> Graph:
    """Synthetic, with every count of Reddit: 57,307,946 undirected pairs.

    It takes more than 10 GiB to draw, and has not been drawn to the end yet.
    """
    # ASSUME: classes as easy to tell as those of arxiv_shape; no byte depends on it.
    return _of_known_size("reddit_shape", homophily=0.65, separation=2.0)


def products_shape() -> Graph:
    """Synthetic, with every count of ogbn-products: 61,859,140 undirected pairs.

    It takes more than 10 GiB to draw, and has not been drawn to the end yet.
    """
    # ASSUME: classes as easy to tell as those of arxiv_shape; no byte depends on it.
    return _of_known_size("products_shape", homophily=0.65, separation=2.0)


def scaled_shape(name: str) -> Graph:
    """Synthetic, drawn as arxiv_shape with another number of nodes."""
    return _of_known_size(name, homophily=0.65, separation=2.0)


def _of_known_size(name: str, homophily: float, separation: float) -> Graph:
    sizes = GRAPH_SIZES[name]
    return synthetic_graph(
        num_nodes=sizes.num_nodes,
        num_edges=sizes.num_entries,
        num_features=sizes.num_features,
        num_classes=sizes.num_classes,
        num_train=sizes.num_train,
        num_validation=sizes.num_validation,
        homophily=homophily,
        separation=separation,
        name=name,
    )


SCALED = ("nodes_10k", "nodes_30k", "nodes_100k", "nodes_300k", "nodes_1m")
EMBEDDED_GRAPHS: dict[str, Callable[[], Graph]] = {
    "digits": digits_graph,
    "arxiv_shape": arxiv_shape,
    "flickr_shape": flickr_shape,
    "reddit_shape": reddit_shape,
    "products_shape": products_shape,
    **{name: partial(scaled_shape, name) for name in SCALED},
}
