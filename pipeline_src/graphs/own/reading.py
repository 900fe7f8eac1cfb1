"""A user's file -> Graph: read as plain arrays, checked, nothing done in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.own.archives import read_archive
from pipeline_src.graphs.own.arrays import Arrays, notes_of_unread, refuse_unread_edges
from pipeline_src.graphs.own.edges import adjacency_of, checked_edges, notes_of_edges
from pipeline_src.graphs.own.given import GivenGraph
from pipeline_src.graphs.own.nodes import (
    checked_features,
    checked_labels,
    notes_of_nodes,
)
from pipeline_src.graphs.own.splits import checked_splits
from pipeline_src.graphs.own.stored import read_stored
from pipeline_src.graphs.own.tables import read_tables

READERS: dict[str, Callable[[Path], Arrays]] = {
    ".pt": read_stored,
    ".npz": read_archive,
}


class OwnGraph(NamedTuple):
    """A graph, and sentences on what was done to get it from its file."""

    graph: Graph
    notes: list[str]


def read_own_graph(name: str, given: GivenGraph) -> OwnGraph:
    """The graph that a configuration calls `name`.

    Raises:
        ValueError: if the file holds no such graph, naming the array, what was
            expected, what came and the way out.
        OSError: if the file cannot be opened.
    """
    place = given.place
    read = READERS.get(place.suffix, read_tables)
    try:
        return graph_from_arrays(name, read(place), given)
    except ValueError as error:
        raise ValueError(f"graphs.{name}, read from {place}: {error}") from error


def graph_from_arrays(name: str, arrays: Arrays, given: GivenGraph) -> OwnGraph:
    """Graph of named arrays, which are checked first.

    Raises:
        ValueError: as read_own_graph.
    """
    refuse_unread_edges(arrays, given.ignore)
    features = checked_features(arrays)
    num_nodes = len(features)
    labels = checked_labels(arrays, given, num_nodes)
    source, target = checked_edges(arrays, given, num_nodes)
    train, validation, test = checked_splits(arrays, given, labels)
    adjacency = adjacency_of(source, target, given, num_nodes)
    graph = Graph(
        name=name,
        features=torch.from_numpy(features),
        labels=torch.from_numpy(
            np.maximum(labels, 0).astype(labels.dtype)
        ),  # any class, in no split
        train_index=torch.from_numpy(train),
        validation_index=torch.from_numpy(validation),
        test_index=torch.from_numpy(test),
        adjacency=adjacency,
        num_classes=labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1,
    )
    return OwnGraph(
        graph,
        [
            *notes_of_nodes(arrays, labels),
            *notes_of_edges(arrays, given, adjacency),
            *notes_of_unread(arrays),
        ],
    )
