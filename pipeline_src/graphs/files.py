"""A prepared graph as one .npz file of plain arrays, from which every later step reads.

Wide bag-of-words features are mostly zero: the file holds whichever of dense and
sparse rows is smaller; in memory they are dense.
"""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pipeline_src.graphs.graph import Adjacency, Graph, check_graph
from pipeline_src.records.whole_files import written_whole

MAX_ARRAY_BYTES = 1 << 36  # of all arrays of a file; no graph here comes near
# What reading a damaged archive of arrays can raise.
DAMAGE = (
    EOFError,
    MemoryError,  # a shape that was made up
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def write_graph(graph: Graph, path: str | Path) -> None:
    """Write one .npz, whole or not at all. Equal graphs give equal bytes.

    Raises:
        OSError: if it cannot be written, naming the file and the remedy.
        ValueError: if the graph contradicts itself (see check_graph).
    """
    check_graph(graph)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **_arrays_from_graph(graph))


def read_graph(path: str | Path) -> Graph:
    """Read what write_graph wrote; nothing in the file can execute.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of another layout, or contradicts itself.
    """
    try:
        refuse_large_archive(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"array {damaged} does not match its checksum")
        with np.load(path, allow_pickle=False) as file:
            graph = _graph_from_arrays(dict(file))
        check_graph(graph)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(
            f"{path} is not a sound prepared graph: {error}. "
            "Delete it and run snakemake again to prepare it anew."
        ) from error
    return graph


def refuse_large_archive(path: str | Path) -> None:
    """Refuse an .npz that unpacks to more than any graph has, before it unpacks.

    Raises:
        ValueError: naming the bytes; zipfile reads no more of a member than it says.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_ARRAY_BYTES:
        raise ValueError(
            f"expected arrays of at most {MAX_ARRAY_BYTES} bytes, got {unpacked}"
        )


def _arrays_from_graph(graph: Graph) -> dict[str, np.ndarray]:
    """What the file holds, by name."""
    arrays = {
        "name": np.array(graph.name),
        "num_classes": np.array(graph.num_classes),
        "labels": graph.labels.numpy(),
        "train_index": graph.train_index.numpy(),
        "validation_index": graph.validation_index.numpy(),
        "test_index": graph.test_index.numpy(),
    }
    adjacency = graph.adjacency
    for prefix, part in (("", adjacency), ("transposed_", adjacency.transposed)):
        if part is not None:
            arrays[f"{prefix}row_pointer"] = part.row_pointer.numpy()
            arrays[f"{prefix}column"] = part.column.numpy()
    return arrays | _feature_arrays(graph.features.numpy())


def _feature_arrays(features: np.ndarray) -> dict[str, np.ndarray]:
    """Dense features or their sparse rows, whichever takes fewer bytes."""
    # Sparse: 4 bytes for a value, 4 for its column, 4 for the start of each row.
    sparse_bytes = 8 * np.count_nonzero(features) + 4 * (len(features) + 1)
    if sparse_bytes >= features.nbytes:
        return {"features": features}
    rows = sp.csr_array(features)
    return {
        "features_data": rows.data,
        "features_indices": rows.indices,
        "features_indptr": rows.indptr,
        "features_shape": np.array(rows.shape),
    }


def _graph_from_arrays(arrays: dict[str, np.ndarray]) -> Graph:
    """Graph from the arrays of its file, not yet checked."""

    def take(name: str) -> np.ndarray:
        if name not in arrays:
            raise ValueError(f"expected an array {name}, got {sorted(arrays)}")
        return arrays[name]

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(take(name))

    if "features" in arrays:
        features = take("features")
    else:
        shape = take("features_shape")
        parts = ("data", "indices", "indptr")
        rows = sp.csr_array(tuple(take(f"features_{part}") for part in parts), shape)
        rows.check_format(full_check=True)
        features = rows.toarray()
    transposed = None
    if "transposed_column" in arrays:
        transposed = Adjacency(
            tensor("transposed_row_pointer"), tensor("transposed_column")
        )
    adjacency = Adjacency(tensor("row_pointer"), tensor("column"), transposed)
    return Graph(
        name=str(take("name")),
        features=torch.from_numpy(features),
        labels=tensor("labels"),
        train_index=tensor("train_index"),
        validation_index=tensor("validation_index"),
        test_index=tensor("test_index"),
        adjacency=adjacency,
        num_classes=int(take("num_classes")),
    )
