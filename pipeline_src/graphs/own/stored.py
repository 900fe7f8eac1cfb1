"""PyTorch files of a Data object or a dictionary, read without executing anything.

`torch.save` writes a pickle, and a pickle is a program. It is read here by PyTorch's
restricted reader (`weights_only`), which builds tensors and plain containers and calls
nothing that a file names. What PyTorch Geometric's classes are in such a file, their
bare attributes, goes into a stand-in: its code does not run either, it need not be
installed, and its version does not matter.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_src.graphs.files import DAMAGE, MAX_ARRAY_BYTES, refuse_large_archive
from pipeline_src.graphs.own.arrays import READ, Arrays

REMEDY = (
    'write plain tensors instead: torch.save({"x": data.x, "y": data.y, '
    '"edge_index": data.edge_index, "train_mask": data.train_mask, '
    '"val_mask": data.val_mask, "test_mask": data.test_mask}, path)'
)

MORE_DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError)


class StoredData:
    """Receives the attributes of Data, of its storage and of what hangs on them."""


# Where PyTorch Geometric 2.0 and later keep what a saved Data consists of.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (StoredData, f"torch_geometric.data.{name}")
    for name in (
        "data.Data",
        "data.DataEdgeAttr",
        "data.DataTensorAttr",
        "storage.GlobalStorage",
    )
]


def read_stored(path: str | Path) -> Arrays:
    """Arrays of a `.pt` file: a Data, a dictionary, or what InMemoryDataset saves.

    What is no tensor and not read anyway has an empty array in its place.

    Raises:
        ValueError: if the file is damaged, names what could execute, or holds
            anything else, such as several graphs.
        OSError: if it cannot be opened.
    """
    with Path(path).open("rb") as file:  # a missing file is no damaged one
        file.read(1)
    try:
        if zipfile.is_zipfile(path):
            refuse_large_archive(path)
            _refuse_altered(path)
        with _only_stand_ins():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "expected tensors in a Data or in a dictionary, got a file that asks for "
            f"more, which could be code, so nothing of it was executed: "
            f"{_first_line(error)}; "
            f"{REMEDY}"
        ) from error
    except (*DAMAGE, *MORE_DAMAGE) as error:
        raise ValueError(
            f"expected a sound file of torch.save, got: {_first_line(error)}"
        ) from error
    return {
        name: _array(name, value) if name in READ else np.empty(0)
        for name, value in _attributes(content).items()
        if value is not None
    }


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Admit these and no classes that other libraries of this process have admitted."""
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(STAND_INS)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(admitted)


def _refuse_altered(path: str | Path) -> None:
    """Compare checksums, which PyTorch writes and does not look at."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not match its checksum")


def _attributes(content: Any) -> Mapping[str, Any]:
    """Names and values of one graph, whichever way it was saved."""
    if isinstance(content, tuple) and len(content) in (2, 3):  # of InMemoryDataset
        content, slices = content[:2]
        if slices is not None:
            raise ValueError("expected one graph, got a file of several in one")
    if isinstance(content, StoredData):
        store = vars(content).get("_store")
        content = vars(store).get("_mapping") if isinstance(store, StoredData) else None
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        raise ValueError(
            "expected a Data or a dictionary from names to tensors, got "
            f"{type(content).__name__}; {REMEDY}"
        )
    return content


def _array(name: str, value: Any) -> np.ndarray:
    """The tensor's values; bfloat16, which NumPy lacks, as float32."""
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if not isinstance(value, Tensor):
        kind = "a sparse adjacency" if isinstance(value, StoredData) else type(value)
        raise ValueError(f"{name}: expected a tensor, got {kind}; {REMEDY}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise ValueError(
            f"{name}: expected a dense tensor, got {value.layout} of {value.dtype} on "
            f"{value.device}; call .to_dense() before it is saved"
        )
    if value.numel() * value.element_size() > MAX_ARRAY_BYTES:
        raise ValueError(
            f"{name}: expected at most {MAX_ARRAY_BYTES} bytes, "
            f"got the shape {tuple(value.shape)}"
        )
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _first_line(error: BaseException) -> str:
    """What is wrong, without PyTorch's advice to trust the file."""
    text = " ".join(str(error).split())
    if "Unsupported global: GLOBAL " in text:
        named = text.partition("Unsupported global: GLOBAL ")[2]
        return named.partition(" ")[0]
    return text[:200] or type(error).__name__
