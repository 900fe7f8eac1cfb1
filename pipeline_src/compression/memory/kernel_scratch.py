"""Memory that single kernels take and give back inside, where it is large.

No operation is dispatched for it, so it is written down here: products with a sparse
matrix, which a CPU turns to rows of its own indices first. Each rule is the sequence of
allocations that the profiler shows for PyTorch 2.13 on a CPU, added up. A GPU's sparse
products have buffers of their own, which nothing here knows.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline_src.compression.memory.sparse_parts import parts

_INT32, _INT64 = 4, 8  # bytes
aten = torch.ops.aten


def scratch_bytes(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """Bytes that a kernel needs at once beside what it is given and what it returns."""
    if func in (aten.mm.default, aten._sparse_mm.default):
        return _product(args[0], output, written_once=False)
    if func in (aten.addmm.default, aten._sparse_addmm.default):
        return _product(args[1], output, written_once=False)
    if func is aten.addmm.out:
        return _product(args[1], output, written_once=True)
    if func is aten._sparse_mm_reduce_impl_backward.default:
        return _reduction_gradient(args[0], args[1], args[3], output[1])
    return 0


def _product(matrix: Any, output: Tensor, written_once: bool) -> int:
    """Of a sparse matrix with a dense one, the output (num_rows, width)."""
    if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
        return 0
    once = 0 if written_once else output.nbytes
    if matrix.layout == torch.sparse_coo:
        indices, values = parts(matrix)
        return once + (0 if matrix.is_coalesced() else values.nbytes + indices.nbytes)
    pointer, index, values = parts(matrix)
    size, count = index.element_size(), index.numel()
    rows = matrix.shape[0] + 1
    # The library takes int32.
    as_int32 = _INT32 * (count + rows) if size == _INT64 else 0
    if matrix.layout == torch.sparse_csr:
        return once + as_int32
    # The transpose of a CSR matrix is one by columns, and is sorted by rows first.
    coordinates = 2 * size * count
    turned = coordinates + values.nbytes + size * rows
    sorting = max(
        4 * _INT64 * count,
        2 * _INT64 * count + turned + 2 * size * rows,
    )
    sorting += coordinates + pointer.nbytes
    return max(0, sorting - output.nbytes, turned + once + as_int32)


def _reduction_gradient(
    matrix: Tensor, gradient: Tensor, reduce: str, output: Tensor | None
) -> int:
    """Of torch.sparse.mm with a reduction, as its dense factor sees it."""
    if output is None:
        return 0
    _, index, values = parts(matrix)
    size, count = index.element_size(), index.numel()
    sorting = 4 * size * count + 2 * _INT64 * count
    permuted = 2 * size * count + _INT64 * count + size * (matrix.shape[1] + 1)
    if reduce in ("sum", "mean"):
        times = 2 if reduce == "mean" else 1
        permuted += size * count + times * values.nbytes
    else:
        permuted += gradient.nbytes
    return max(0, sorting - output.nbytes, permuted)
