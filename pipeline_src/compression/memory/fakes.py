"""A model and its input as tensors of a size and no memory.

PyTorch's fake tensors answer each operation with the shape of its result. Floats become
fake: nothing about memory depends on their values. Integers and booleans that hold
values stay as they are, and what is computed from them alone is computed: edges without
self-loops, the largest index, the rows of a sparse matrix. Of a sparse matrix the
values become fake and the indices stay.

Where such values are not known, as with tensors on the device "meta",

# ASSUME: a mask selects everything, which is an upper bound;

and what has no bound, such as the largest index, is refused.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

from pipeline_src.compression.memory.sparse_parts import parts

aten = torch.ops.aten
Value = TypeVar("Value")
_PARTS = {
    aten.crow_indices.default: 0,
    aten.col_indices.default: 1,
    aten.ccol_indices.default: 0,
    aten.row_indices.default: 1,
    aten._indices.default: 0,
}
_COUNTS = ("arange", "full", "randint", "randperm", "scalar_tensor")


class UnknownValueError(ValueError):
    """A shape or a branch depends on a value that nobody gave."""


class Fakes:
    """Makes fakes for one device, and is what they live in."""

    def __init__(self, device: torch.device) -> None:
        """Of a model on that device."""
        self._device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.indices: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def model(self, model: nn.Module) -> nn.Module:
        """A copy of a model whose parameters and buffers are fakes."""
        with FakeCopyMode(self.mode):
            copied = copy.deepcopy(model)
        for parameter in copied.parameters():
            parameter.grad = None
        return copied

    def values(self, given: Value) -> Value:
        """Tensors in a tree as fakes; integers with values stay."""
        made: Value = tree_map_only(Tensor, self.tensor, given)
        return made

    def tensor(self, tensor: Tensor) -> Tensor:
        """See values."""
        if isinstance(tensor, FakeTensor):
            raise ValueError(
                "a fake tensor belongs to the mode that made it; give tensors with "
                'values, or torch.empty(shape, device="meta") where there are none'
            )
        if tensor.layout != torch.strided:
            return self.sparse(tensor)
        if tensor.is_meta:
            fake = FakeTensor(self.mode, tensor, self._device)
            return fake.requires_grad_(tensor.requires_grad)
        if tensor.is_floating_point() or tensor.is_complex():
            return self.mode.from_tensor(tensor)
        return tensor

    def sparse(self, matrix: Tensor) -> Tensor:
        """A fake of a sparse matrix; its indices are known if they have values."""
        return self.compressed(
            parts(matrix), matrix.shape, matrix.layout, matrix.is_coalesced()
            if matrix.layout == torch.sparse_coo else True,
        )

    def compressed(
        self,
        made_of: tuple[Tensor, ...],
        shape: torch.Size,
        layout: torch.layout,
        is_coalesced: bool = True,
    ) -> Tensor:
        """A fake of a sparse matrix made of these parts, real or fake."""
        with _disable_current_modes():
            *indices, values = (
                torch.empty(one.shape, dtype=one.dtype, device="meta")
                for one in made_of
            )
            if layout == torch.sparse_coo:
                meta = torch.sparse_coo_tensor(
                    indices[0], values, shape, is_coalesced=is_coalesced,
                    check_invariants=False,
                )
            else:
                meta = torch.sparse_compressed_tensor(
                    *indices, values, shape, layout=layout, check_invariants=False
                )
            fake = FakeTensor(self.mode, meta, self._device)
        if not any(isinstance(one, FakeTensor) or one.is_meta for one in made_of[:-1]):
            self.indices[id(fake)] = (fake, made_of[:-1])
        return fake

    @contextmanager
    def open(self) -> Iterator[None]:
        """Operations on fakes, and those on integers that they need.

        Raises:
            UnknownValueError: where an operation needs values that are not known.
        """
        with torch.random.fork_rng(devices=[]), self.mode, _Known(self):
            yield


class _Known(TorchDispatchMode):
    """Computes what depends on known integers alone; bounds what does not."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if _is_tensor(one)]
        if func in _PARTS and id(args[0]) in self._fakes.indices:
            return self._fakes.indices[id(args[0])][1][_PARTS[func]]
        if _is_sparse_factory(func):
            return self._sparse(func, args, kwargs)
        if not any(isinstance(one, FakeTensor) for one in tensors) and (
            tensors or _is_integer_factory(func, args, kwargs)
        ):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if rule := _BOUNDED.get(func):
            with self._fakes.mode:
                return rule(func, *args, **kwargs)
        if (
            func._schema.is_mutable
            and _is_tensor(args[0])
            and not isinstance(args[0], FakeTensor)
        ):
            raise UnknownValueError(
                f"{func} writes values that are not known into a tensor of integers; "
                f"{_WAY_OUT}"
            )
        try:
            return func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise UnknownValueError(
                f"{func} needs values that are not known; {_WAY_OUT}"
            ) from error

    def _sparse(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = _bind(func, args, kwargs)
        layout = bound.get("layout") or torch.sparse_coo
        names = ("indices", "crow_indices", "ccol_indices", "compressed_indices")
        names += ("col_indices", "row_indices", "plain_indices", "values")
        made_of = tuple(bound[name] for name in names if name in bound)
        return self._fakes.compressed(made_of, torch.Size(bound["size"]), layout)


_WAY_OUT = (
    "give the integers of the input as tensors with values (their floats may stay "
    'on "meta"), or take the step itself with fake=False'
)


def _is_tensor(one: Any) -> bool:
    return isinstance(one, Tensor)


def _is_integer_factory(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    name = func._schema.name.partition("::")[2]
    return name in _COUNTS and not tree_any(lambda one: isinstance(one, float), args)


def _is_sparse_factory(func: Any) -> bool:
    return func in (
        aten._sparse_compressed_tensor_unsafe.default,
        aten.sparse_compressed_tensor.comp_plain_value_size,
        aten._sparse_csr_tensor_unsafe.default,
        aten.sparse_csr_tensor.crow_col_value_size,
        aten._sparse_coo_tensor_unsafe.default,
        aten._sparse_coo_tensor_with_dims_and_tensors.default,
    )


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _known_positions(mask: Tensor) -> tuple[Tensor, ...]:
    """Where a mask is true; everywhere, if that is not known."""
    if not isinstance(mask, FakeTensor):
        with _disable_current_modes():
            return mask.nonzero(as_tuple=True)
    count = mask.numel()
    return tuple(mask.new_empty(count, dtype=torch.int64) for _ in range(mask.ndim))


def _index(func: Any, x: Tensor, indices: list[Any], *others: Any, **named: Any) -> Any:
    expanded: list[Any] = []
    for one in indices:
        if _is_tensor(one) and one.dtype in (torch.bool, torch.uint8):
            expanded += _known_positions(one)
        else:
            expanded.append(one)
    return func(x, expanded, *others, **named)


def _nonzero(func: Any, mask: Tensor) -> Tensor:
    return mask.new_empty((mask.numel(), mask.ndim), dtype=torch.int64)


def _masked_select(func: Any, x: Tensor, mask: Tensor) -> Tensor:
    if isinstance(mask, FakeTensor):
        return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())
    return x.new_empty(int(mask.expand(torch.broadcast_shapes(x.shape, mask.shape)).sum()))


_BOUNDED: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: _index,
    aten.index_put.default: _index,
    aten.index_put_.default: _index,
    aten._index_put_impl_.default: _index,
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
}
