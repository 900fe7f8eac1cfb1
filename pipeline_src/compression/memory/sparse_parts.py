"""What a tensor's memory consists of, sparse ones included."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

GIVEN = "_made_of"  # attribute of a fake sparse matrix: its parts, fake or not


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The strided tensors that a tensor is made of; itself, if it is one."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if (given := getattr(tensor, GIVEN, None)) is not None:
        return tuple(given)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return tensor._indices(), tensor._values()


def storages(tensor: Tensor) -> Iterator[Any]:
    """The storages behind a tensor."""
    for part in parts(tensor):
        yield part.untyped_storage()
