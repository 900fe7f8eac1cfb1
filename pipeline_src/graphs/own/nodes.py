"""Features and classes of nodes, as a user's file gives them, or why they are none."""

from collections.abc import Iterator

import numpy as np

from pipeline_src.graphs.edges import whole_numbers
from pipeline_src.graphs.own.arrays import COUNT, FEATURES, LABELS, Arrays, taken
from pipeline_src.graphs.own.given import GivenGraph


def checked_features(arrays: Arrays) -> np.ndarray:
    """(num_nodes, num_features) float32, rounded where the file holds more digits.

    Raises:
        ValueError: if they are no table of numbers that float32 can hold.
    """
    given = taken(arrays, FEATURES)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(
            f"x: expected a table of shape (num_nodes, num_features), got shape "
            f"{given.shape}; one feature per node is a table with one column"
        )
    if given.dtype.kind not in "fiub":
        raise ValueError(f"x: expected numbers, got {given.dtype}")
    _refuse_infinite(given, "got NaN or infinite ones")
    with np.errstate(over="ignore"):  # refused in the next line
        features = np.ascontiguousarray(given, dtype=np.float32)
    _refuse_infinite(features, "got larger ones; divide them by a constant")
    counted = arrays.get(COUNT)
    if counted is not None and (counted.ndim or counted != len(features)):
        raise ValueError(
            f"num_nodes: expected {len(features)}, the rows of x, got {counted}"
        )
    return features


def checked_labels(arrays: Arrays, given: GivenGraph, num_nodes: int) -> np.ndarray:
    """(num_nodes,) int64 classes, counted from 0; a single column is one list.

    Nodes without a class, which the user may leave out of all splits, have -1. A table
    of 0 and 1 with a column for each label stays one: (num_nodes, num_labels) uint8.

    Raises:
        ValueError: if a node has no class or several, or the classes are none.
    """
    stored = taken(arrays, LABELS)
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim == 2:
        return _label_table(stored, num_nodes)
    if stored.shape != (num_nodes,):
        raise ValueError(
            f"y: expected {num_nodes} classes, one for each row of x, got shape "
            f"{stored.shape}"
        )
    if stored.dtype.kind not in "iu":
        raise ValueError(
            f"y: expected classes as integers, got {stored.dtype}; if they are classes "
            "and no quantity, write y.long()"
        )
    labels = whole_numbers("y", stored)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 and given.unlabeled == "refuse":
        raise ValueError(
            f"y: expected classes counted from 0, got {low} at node "
            f"{int(labels.argmin())} ({int((labels < 0).sum())} are negative); if such "
            "nodes have no class, write unlabeled: exclude"
        )
    if high <= 0 or high >= num_nodes:
        raise ValueError(
            f"y: expected at least 2 classes and at most one for each of {num_nodes} "
            f"nodes, got a largest class of {high}; classes are counted from 0"
        )
    return np.maximum(labels, -1)


def _label_table(stored: np.ndarray, num_nodes: int) -> np.ndarray:
    """Several labels per node, (num_nodes, num_labels) uint8 of 0 and 1."""
    if stored.dtype.kind not in "fiub" or not np.isin(stored, (0, 1)).all():
        raise ValueError(
            "y: expected a table of 0 and 1 where it has a column for each label, got "
            f"{stored.dtype} with other values, shape {stored.shape}; for one class "
            "per node give a list of integers"
        )
    if len(stored) != num_nodes or stored.shape[1] < 2:
        raise ValueError(
            f"y: expected {num_nodes} rows, one for each row of x, and two labels or "
            f"more, got shape {stored.shape}"
        )
    table = stored.astype(np.uint8)
    if (table.sum(axis=1) == 1).all():
        raise ValueError(
            f"y: expected one class per node as a list, got a table of shape "
            f"{stored.shape} in which each row marks one class; write y.argmax(1)"
        )
    return table


def notes_of_nodes(arrays: Arrays, labels: np.ndarray) -> Iterator[str]:
    """Sentences on what was done to features, and on classes without nodes."""
    if (dtype := arrays[FEATURES].dtype) != np.float32:
        yield f"x: {dtype} became float32"
    if labels.ndim == 2:
        yield f"y: {labels.shape[1]} labels, of which a node may have several"
    if missing := int((labels < 0).sum()):
        yield f"y: {missing} nodes have no class, and are in no split"
    of_class = (
        labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels[labels >= 0])
    )
    if empty := np.flatnonzero(of_class == 0).tolist():
        more = ", ..." if len(empty) > 5 else ""
        yield (
            f"y: {len(empty)} classes have no node: "
            f"{', '.join(map(str, empty[:5]))}{more}"
        )


def _refuse_infinite(features: np.ndarray, got: str) -> None:
    finite = np.isfinite(features)
    if not finite.all():
        node, column = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"x: expected finite numbers that float32 can hold, {got}: "
            f"{int((~finite).sum())} of {features.size}, the first in row {node}, "
            f"column {column}"
        )
