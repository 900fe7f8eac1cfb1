"""Lists of edges and compressed sparse rows: index arithmetic without weights.

Row i of a compressed adjacency lists the nodes that send to node i, increasing and
each once. The whole is two int32 arrays: `row_pointer`, where each row starts, and
`column`, the rows one after another. NumPy in, NumPy out.
"""

import numpy as np
import scipy.sparse as sp

_LARGEST_INT32 = 2**31 - 1
Rows = tuple[np.ndarray, np.ndarray]  # row_pointer (num_nodes + 1,), column, int32


def rows_from_edges(
    source: np.ndarray,  # (num_edges,) whole numbers, the node that sends
    target: np.ndarray,  # (num_edges,) whole numbers, the node that receives
    num_nodes: int,
) -> Rows:
    """Compressed rows of the receiving nodes; repeated edges count once.

    Raises:
        ValueError: if an edge names what is no node of 0 .. num_nodes - 1, or there
            are more nodes or edges than int32 can count.
        TypeError: if an array does not hold numbers.
    """
    if not 0 <= num_nodes <= _LARGEST_INT32:
        raise ValueError(
            f"num_nodes must lie in 0 .. {_LARGEST_INT32} (int32), got {num_nodes}"
        )
    if source.shape != target.shape or source.ndim != 1:
        raise ValueError(
            "source and target must be two lists of equal length, "
            f"got shapes {source.shape} and {target.shape}"
        )
    source = whole_numbers("source", source)
    target = whole_numbers("target", target)
    for role, node in (("source", source), ("target", target)):
        if node.size and not 0 <= node.min() <= node.max() < num_nodes:
            raise ValueError(
                f"{role} must lie in 0 .. {num_nodes - 1} (num_nodes - 1), "
                f"got {node.min()} .. {node.max()}"
            )
    key = np.unique(target * num_nodes + source)
    if len(key) > _LARGEST_INT32:
        raise ValueError(
            f"an adjacency holds at most {_LARGEST_INT32} edges (int32), got {len(key)}"
        )
    row_pointer = np.zeros(num_nodes + 1, dtype=np.int32)
    np.cumsum(np.bincount(key // num_nodes, minlength=num_nodes), out=row_pointer[1:])
    return row_pointer, (key % num_nodes).astype(np.int32)


def whole_numbers(name: str, values: np.ndarray) -> np.ndarray:
    """The same numbers as int64, whatever type they came in; no others.

    Raises:
        ValueError: if a value is no whole number, or int64 cannot hold it.
        TypeError: if the array does not hold numbers.

    >>> whole_numbers("source", np.array([3.0, 1.0]))
    array([3, 1])
    """
    if values.dtype.kind not in "iuf":
        if values.size == 0:
            return np.empty(values.shape, np.int64)
        raise TypeError(
            f"{name} must hold whole numbers, of an integer or a floating type, "
            f"got {values.dtype}"
        )
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        if (wrong := values[values != np.rint(values)]).size:  # NaN equals nothing
            raise ValueError(f"{name} must hold whole numbers, got {wrong[0]}")
    if (wrong := values[(values >= 2**63) | (values < -(2**63))]).size:
        raise ValueError(f"{name} must hold numbers that int64 can, got {wrong[0]}")
    return values.astype(np.int64)


def transposed_rows(row_pointer: np.ndarray, column: np.ndarray) -> Rows:
    """Compressed rows of the same edges turned round, in linear time."""
    num_nodes = len(row_pointer) - 1
    ones = np.ones(len(column), dtype=np.int8)
    rows = sp.csr_array((ones, column, row_pointer), shape=(num_nodes, num_nodes))
    turned = rows.T.tocsr()
    return turned.indptr.astype(np.int32), turned.indices.astype(np.int32)


def same_rows(one: Rows, other: Rows) -> bool:
    """Whether two adjacencies hold the same edges."""
    return all(map(np.array_equal, one, other))


def check_rows(row_pointer: np.ndarray, column: np.ndarray) -> None:
    """Refuse arrays that are not compressed rows of a square adjacency.

    Raises:
        ValueError: naming the array, what it should hold and what it holds.
    """
    for name, array in (("row_pointer", row_pointer), ("column", column)):
        if array.dtype != np.int32 or array.ndim != 1:
            raise ValueError(
                f"{name}: expected a list of int32, got {array.dtype} "
                f"of {array.ndim} dimension(s)"
            )
    num_nodes = len(row_pointer) - 1
    ends = row_pointer[:1].tolist() + row_pointer[-1:].tolist()
    if ends != [0, len(column)] or (np.diff(row_pointer) < 0).any():
        raise ValueError(
            f"row_pointer: expected to rise from 0 to the {len(column)} entries of "
            f"column, got ends {ends}"
        )
    if column.size and not 0 <= column.min() <= column.max() < num_nodes:
        raise ValueError(
            f"column: expected nodes in 0 .. {num_nodes - 1}, "
            f"got {column.min()} .. {column.max()}"
        )
    falls = np.diff(column) <= 0
    first_of_row = row_pointer[(row_pointer > 0) & (row_pointer < len(column))]
    falls[first_of_row - 1] = False  # only from one row to the next it may fall
    if falls.any():
        raise ValueError("column: expected nodes that increase within each row")
