"""Which nodes train, validate and test: as a file says, or made from a seed."""

import itertools

import numpy as np

from pipeline_src.graphs.edges import whole_numbers
from pipeline_src.graphs.own.arrays import INDICES, MASKS, Arrays, taken
from pipeline_src.graphs.own.given import GivenGraph, GivenSplit

MAKE = "split: {train: 0.6, val: 0.2, seed: 0}"
Splits = tuple[np.ndarray, np.ndarray, np.ndarray]  # train, validation, test nodes


def checked_splits(arrays: Arrays, given: GivenGraph, labels: np.ndarray) -> Splits:
    """Nodes to train, validate and test on, sorted int64, disjoint, none empty.

    A split that the configuration asks for is made, whatever the file holds. Nodes
    without a class, whose label is -1, are in none. Where a node may have several
    labels, shares are those of all nodes.

    Raises:
        ValueError: if there is no split, or what the file gives is none.
    """
    if labels.ndim == 2:  # several labels: shares are those of all nodes
        labels = np.zeros(len(labels), np.int64)
    split = given.split or GivenSplit()
    if split.train is not None and split.val is not None:
        labeled = np.flatnonzero(labels >= 0)
        parts = seeded_split(labels[labeled], split.train, split.val, split.seed)
        splits = labeled[parts[0]], labeled[parts[1]], labeled[parts[2]]
        names: tuple[str, ...] = ("train", "val", "test")
    else:
        names = _names_of_splits(arrays)
        splits = _splits_of_file(arrays, names, split.column, len(labels))
    named = dict(zip(names, splits, strict=True))
    _refuse_empty_or_shared(named)
    _refuse_unlabeled(named, labels)
    return splits


def seeded_split(
    labels: np.ndarray,  # (num_nodes,) int64, from 0
    train: float,  # share of each class, above 0
    val: float,  # share of each class, above 0; train + val below 1
    seed: int,
) -> Splits:
    """Each class is shuffled and cut at train and train + val; the rest tests.

    Both cuts are rounded to whole nodes, halves up: of a class of n nodes, those to
    train and those to test differ from n times their share by 1/2 at most, those to
    validate by less than 1.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    parts: list[list[np.ndarray]] = [[], [], []]
    stops = np.cumsum(np.bincount(labels))[:-1]
    for nodes in np.split(by_class, stops):
        cuts = [int(np.floor(len(nodes) * s + 0.5)) for s in (train, train + val)]
        for part, piece in zip(parts, np.split(nodes, cuts), strict=True):
            part.append(piece)
    one, two, three = (np.sort(np.concatenate(part)) for part in parts)
    return one, two, three


def _names_of_splits(arrays: Arrays) -> tuple[str, ...]:
    masks, indices = ([n for n in names if n in arrays] for names in (MASKS, INDICES))
    if masks and indices:
        raise ValueError(
            f"splits: expected masks or numbers of nodes, got both: "
            f"{', '.join(masks + indices)}; keep one kind, or make a split: {MAKE}"
        )
    if not masks and not indices:
        raise ValueError(
            f"splits: expected {', '.join(MASKS)} (or {', '.join(INDICES)}), got none; "
            f"write them to the file, or make a split: {MAKE}"
        )
    names = MASKS if masks else INDICES
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(
            f"splits: expected {', '.join(names)}, got no {', '.join(missing)}; write "
            f"all three to the file, or make a split: {MAKE}"
        )
    return names


def _splits_of_file(
    arrays: Arrays, names: tuple[str, ...], column: int | None, num_nodes: int
) -> Splits:
    if column is not None and all(arrays[name].ndim != 2 for name in names):
        raise ValueError(
            f"split.column: expected masks with several columns, got none among "
            f"{', '.join(names)}; leave the key out"
        )
    nodes_of = _nodes_of_mask if names == MASKS else _nodes_of_index
    one, two, three = (
        nodes_of(name, taken(arrays, name), column, num_nodes) for name in names
    )
    return one, two, three


def _nodes_of_mask(
    name: str, mask: np.ndarray, column: int | None, num_nodes: int
) -> np.ndarray:
    if mask.dtype != bool:
        raise ValueError(
            f"{name}: expected true or false for each node, got {mask.dtype}; write "
            f"{name}.bool(), or call a list of nodes {name.replace('mask', 'index')}"
        )
    if mask.ndim == 2 and len(mask) == num_nodes:
        if column is None:
            raise ValueError(
                f"{name}: expected one split, got {mask.shape[1]}, one in each "
                "column; choose one: split: {column: 0}"
            )
        if column >= mask.shape[1]:
            raise ValueError(
                f"split.column: expected 0 .. {mask.shape[1] - 1}, a column of "
                f"{name}, got {column}"
            )
        mask = mask[:, column]
    if mask.shape != (num_nodes,):
        raise ValueError(
            f"{name}: expected {num_nodes} values, one for each row of x, got shape "
            f"{mask.shape}"
        )
    return np.flatnonzero(mask)


def _nodes_of_index(
    name: str, nodes: np.ndarray, _: int | None, num_nodes: int
) -> np.ndarray:
    if nodes.ndim != 1 or nodes.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected a list of nodes as integers, got {nodes.dtype} of shape "
            f"{nodes.shape}"
        )
    whole = np.sort(whole_numbers(name, nodes))
    if whole.size and not 0 <= whole[0] <= whole[-1] < num_nodes:
        raise ValueError(
            f"{name}: expected nodes in 0 .. {num_nodes - 1}, the rows of x, got "
            f"{whole[0]} .. {whole[-1]}"
        )
    if (twice := whole[1:][np.diff(whole) == 0]).size:
        raise ValueError(f"{name}: expected each node once, got {twice[0]} twice")
    return whole


def _refuse_empty_or_shared(splits: dict[str, np.ndarray]) -> None:
    for name, nodes in splits.items():
        if not nodes.size:
            raise ValueError(
                f"{name}: expected at least one node, got none; take some from "
                "another split, or change the shares"
            )
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        if (shared := np.intersect1d(first, second)).size:
            raise ValueError(
                f"{one} and {other}: expected no node in both, got {shared.size}, "
                f"the first is node {shared[0]}"
            )


def _refuse_unlabeled(splits: dict[str, np.ndarray], labels: np.ndarray) -> None:
    for name, nodes in splits.items():
        if (missing := nodes[labels[nodes] < 0]).size:
            raise ValueError(
                f"{name}: expected nodes with a class, got {missing.size} without, the "
                f"first is node {missing[0]}; take them out of the split"
            )
