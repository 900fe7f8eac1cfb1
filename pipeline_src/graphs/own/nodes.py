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

    Nodes without a class, which the user may leave out of all splits, have -1.

    Raises:
        ValueError: if a node has no class or several, or the classes are none.
    """
    stored = taken(arrays, LABELS)
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim == 2:
        raise ValueError(
            f"y: expected one class per node, got shape {stored.shape}: several labels "
            "of a node are not supported; if each row marks one class, write "
            "y.argmax(1)"
        )
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


def notes_of_nodes(arrays: Arrays, labels: np.ndarray) -> Iterator[str]:
    """Sentences on what was done to features, and on classes without nodes."""
    if (dtype := arrays[FEATURES].dtype) != np.float32:
        yield f"x: {dtype} became float32"
    if missing := int((labels < 0).sum()):
        yield f"y: {missing} nodes have no class, and are in no split"
    if empty := np.flatnonzero(np.bincount(labels[labels >= 0]) == 0).tolist():
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
