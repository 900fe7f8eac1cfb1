"""Names under which a file holds a graph's arrays: those of PyTorch Geometric's Data.

Every kind of file is read into a dictionary from these names to NumPy arrays, and is
checked from there on in one way.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]

FEATURES, LABELS, EDGES, COUNT = "x", "y", "edge_index", "num_nodes"
MASKS = ("train_mask", "val_mask", "test_mask")
INDICES = ("train_index", "val_index", "test_index")
READ = (FEATURES, LABELS, EDGES, COUNT, *MASKS, *INDICES)


def taken(arrays: Arrays, name: str) -> np.ndarray:
    """The array of this name.

    Raises:
        ValueError: if the file has none, with the names that it has.
    """
    if name not in arrays:
        has = ", ".join(sorted(arrays)) or "none"
        raise ValueError(
            f"{name}: expected an array of this name, got a file with {has}; needed "
            f"are {FEATURES} (features), {LABELS} (classes) and {EDGES} (edges)"
        )
    return arrays[name]


def refuse_unread_edges(names: Collection[str], ignore: Collection[str]) -> None:
    """Refuse values of edges that nobody reads, unless the user says to ignore them.

    Networks here weigh no edges, so they would see another graph than the file says.

    Raises:
        ValueError: naming the arrays; also for a name to ignore that is not there.
    """
    for name in sorted(ignore):
        if name not in names or name in READ:
            raise ValueError(
                f"ignore: expected names of arrays that are not read, got {name!r} "
                f"for a file with {', '.join(sorted(names))}"
            )
    of_edges = {name for name in names if name.startswith("edge_")} - set(READ)
    if unread := sorted(of_edges - set(ignore)):
        raise ValueError(
            f"{', '.join(unread)}: expected no values of edges, because networks here "
            "weigh no edges and tell no kinds apart; to train without them, list "
            f"them: ignore: [{', '.join(unread)}]"
        )


def notes_of_unread(names: Collection[str]) -> Iterator[str]:
    """A sentence on what a file holds beside the graph."""
    if unread := sorted(set(names) - set(READ)):
        yield f"not read: {', '.join(unread)}"
