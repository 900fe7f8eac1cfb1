"""Edges as a user's file lists them, and what happens to them on the user's word.

Nothing is done to edges in silence. A list that holds each edge in one direction,
an edge twice, or an edge from a node to itself is refused until the configuration
says what is meant.
"""

from collections.abc import Iterator

import numpy as np

from pipeline_src.graphs.edges import whole_numbers
from pipeline_src.graphs.graph import Adjacency, adjacency_from_edges
from pipeline_src.graphs.own.arrays import EDGES, Arrays, taken
from pipeline_src.graphs.own.given import GivenGraph


def checked_edges(
    arrays: Arrays, given: GivenGraph, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets, each (num_edges,) int64, as the user wants them.

    Raises:
        ValueError: if an end is no node, or what the list holds needs a word.
    """
    source, target = _ends(taken(arrays, EDGES), num_nodes)
    source, target = _without_loops(source, target, given)
    if not source.size:
        raise ValueError("edge_index: expected at least one edge, got none")
    key = np.unique(target * num_nodes + source)
    if (repeated := source.size - key.size) and given.repeated_edges == "refuse":
        raise ValueError(
            f"edge_index: expected each edge once, got {repeated} that occur before; "
            "networks here count an edge once: to take each once, write "
            "repeated_edges: merge"
        )
    if given.undirected is None and (single := _without_reverse(key, num_nodes)):
        raise ValueError(
            f"edge_index: expected both directions of every edge, got {single} of "
            f"{key.size} without the reverse; write undirected: true to take every "
            "edge both ways, or undirected: false to keep directions as they are"
        )
    return source, target


def adjacency_of(
    source: np.ndarray, target: np.ndarray, given: GivenGraph, num_nodes: int
) -> Adjacency:
    """The adjacency of checked edges, in both directions if the user says so."""
    both = given.undirected is True
    return adjacency_from_edges(source, target, num_nodes, symmetrize=both)


def notes_of_edges(
    arrays: Arrays, given: GivenGraph, adjacency: Adjacency
) -> Iterator[str]:
    """Sentences on what the word of the user did to the list."""
    listed, kept = arrays[EDGES].shape[1], adjacency.num_entries
    if listed != kept:
        yield f"edge_index: {listed} edges became {kept}"
    if given.undirected is True:
        yield "edge_index: every edge is taken both ways"
    elif not adjacency.symmetric:
        yield "edge_index: directions are kept, a node hears from sources only"


def _ends(edges: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    if edges.ndim != 2 or edges.shape[0] != 2:
        turned = edges.ndim == 2 and edges.shape[1] == 2
        remedy = "; turn it round: edge_index.t()" if turned else ""
        raise ValueError(
            f"edge_index: expected shape (2, num_edges), sources above targets, got "
            f"{edges.shape}{remedy}"
        )
    if edges.dtype.kind not in "iu":
        raise ValueError(
            f"edge_index: expected numbers of nodes as integers, got {edges.dtype}; "
            "floating numbers may have lost their last digits, so write integers"
        )
    whole = whole_numbers("edge_index", edges)
    if whole.size and not 0 <= whole.min() <= whole.max() < num_nodes:
        outside = (whole < 0) | (whole >= num_nodes)
        first = int(outside.any(axis=0).argmax())
        raise ValueError(
            f"edge_index: expected nodes in 0 .. {num_nodes - 1}, the rows of x, got "
            f"{whole.min()} .. {whole.max()}, first in edge {first}: "
            f"{whole[0, first]} -> {whole[1, first]}; nodes are counted from 0"
        )
    return whole[0], whole[1]


def _without_loops(
    source: np.ndarray, target: np.ndarray, given: GivenGraph
) -> tuple[np.ndarray, np.ndarray]:
    loops = source == target
    if not loops.any() or given.self_loops == "keep":
        return source, target
    if given.self_loops == "refuse":
        raise ValueError(
            f"edge_index: expected no edge from a node to itself, got "
            f"{int(loops.sum())}, the first at node {int(source[loops][0])}; write "
            "self_loops: keep, or self_loops: remove"
        )
    return source[~loops], target[~loops]


def _without_reverse(key: np.ndarray, num_nodes: int) -> int:
    """How many of the edges, each once as target * num_nodes + source, lack theirs."""
    turned = key % num_nodes * num_nodes + key // num_nodes
    return int(np.isin(key, turned, invert=True).sum())
