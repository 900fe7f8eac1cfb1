"""A graph of ogbn-products' shape, drawn into files and mapped from them.

products_shape of graphs/embedded.py takes more than 10 GiB to draw. This law is
simpler and takes far less: ends of pairs are drawn without regard to classes.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline_src.graphs.graph import Adjacency, Graph
from pipeline_src.graphs.sizes import PRODUCTS, GraphSizes
from pipeline_src.records.whole_files import write_whole

# Density of a node's rank r falls as r ** (1 / SKEW - 1): degrees have a heavy tail,
# and the largest is a few thousand at products' size.
SKEW = 1.5
BLOCK = 2**21  # pairs, entries or values at once
ARRAYS = (
    *("features", "labels", "row_pointer", "column"),
    *("train_index", "validation_index", "test_index"),
)


def scaled_products(num_nodes: int) -> GraphSizes:
    """Another number of nodes with ogbn-products' mean degree, widths and splits.

    >>> scaled_products(2_449_029) == PRODUCTS
    True
    """

    def share(count: int) -> int:
        return round(num_nodes * count / PRODUCTS.num_nodes)

    return replace(
        PRODUCTS,
        num_nodes=num_nodes,
        num_entries=2 * share(PRODUCTS.num_entries // 2),
        num_train=share(PRODUCTS.num_train),
        num_validation=share(PRODUCTS.num_validation),
    )


def draw_graph(folder: Path, sizes: GraphSizes, seed: int = 0) -> None:
    """Draw a symmetric graph without loops into .npy files, unless it is there.

    Ends of num_entries / 2 pairs are drawn one by one; loops and pairs drawn twice are
    left out, so there are a little fewer entries than asked for. The keys of the
    entries, 8 bytes each, are sorted in memory, all else is written block by block.
    """
    wanted = json.dumps({"sizes": list(vars(sizes).values()), "seed": seed})
    stamp = folder / "drawn.json"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    generator = np.random.default_rng(seed)
    _write_rows(folder, _sorted_keys(sizes, generator), sizes.num_nodes)
    shape = (sizes.num_nodes, sizes.num_features)
    features = _created(folder, "features", np.float32, shape)
    for rows in _blocks(sizes.num_nodes, BLOCK // sizes.num_features):
        block = features[rows]
        generator.standard_normal(out=block, dtype=np.float32)
    features.flush()
    labels = generator.integers(sizes.num_classes, size=sizes.num_nodes)
    np.save(folder / "labels.npy", labels)
    ends = np.cumsum([sizes.num_train, sizes.num_validation])
    parts = np.split(generator.permutation(sizes.num_nodes), ends)
    for name, index in zip(ARRAYS[-3:], parts, strict=True):
        np.save(folder / f"{name}.npy", np.sort(index))
    write_whole(stamp, wanted)


def read_mapped(folder: Path, num_classes: int) -> Graph:
    """The graph of a folder, its tensors mapped from the files and read as needed."""
    arrays = {
        # Copied on write: torch wants to be able to write, and the files stay.
        name: torch.from_numpy(
            np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        )
        for name in ARRAYS
    }
    adjacency = Adjacency(arrays.pop("row_pointer"), arrays.pop("column"))
    return Graph("products", adjacency=adjacency, num_classes=num_classes, **arrays)


def _sorted_keys(sizes: GraphSizes, generator: np.random.Generator) -> np.ndarray:
    """Each entry's receiver * num_nodes + sender, increasing, (num_entries,) int64."""
    count = sizes.num_nodes
    name_of_rank = generator.permutation(count)
    pairs = sizes.num_entries // 2
    keys = np.empty(2 * pairs, np.int64)
    for block in _blocks(pairs, BLOCK):
        size = block.stop - block.start
        rank = (count * generator.random((2, size)) ** SKEW).astype(np.int64)
        one, other = name_of_rank[rank]
        keys[block] = one * count + other
        keys[pairs + block.start : pairs + block.stop] = other * count + one
    print(f"sorting {keys.size} entries", flush=True)
    keys.sort()
    keep = np.empty(keys.size, bool)
    keep[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=keep[1:])
    for block in _blocks(keys.size, BLOCK):
        receiver, sender = np.divmod(keys[block], count)
        keep[block] &= receiver != sender
    return keys[keep]


def _write_rows(folder: Path, keys: np.ndarray, count: int) -> None:
    """Compressed sparse rows of sorted keys."""
    first = np.arange(count + 1, dtype=np.int64) * count
    row_pointer = np.searchsorted(keys, first).astype(np.int32)
    np.save(folder / "row_pointer.npy", row_pointer)
    column = _created(folder, "column", np.int32, keys.shape)
    for block in _blocks(keys.size, BLOCK):
        column[block] = keys[block] % count
    column.flush()


def _created(folder: Path, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to be filled through memory."""
    return np.lib.format.open_memmap(
        folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape
    )


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
