"""A model and its input as tensors of a size and no memory.

PyTorch's fake tensors answer each operation with the shape of its result. Floats become
fake: nothing about memory depends on their values. Integers and booleans that hold
values stay as they are, and what is computed from them alone is computed: edges without
self-loops, the largest index, the rows of a sparse matrix. Of a sparse matrix the
values become fake and the indices stay.

Where such values are not known, as with tensors on the device "meta",

# ASSUME: a mask selects everything, which is an upper bound;

what follows from shapes is known, as the counts of a sparse matrix's rows add up to its
values; and what has no bound, such as the largest index, is refused.
"""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

from pipeline_src.compression.memory.fake_results import (
    SHAPES,
    TOTAL,
    WAY_OUT,
    UnknownValueError,
)
from pipeline_src.compression.memory.sparse_parts import GIVEN, parts

aten = torch.ops.aten
Value = TypeVar("Value")
_PARTS = {
    aten.crow_indices.default: 0,
    aten.col_indices.default: 1,
    aten.ccol_indices.default: 0,
    aten.row_indices.default: 1,
    aten.values.default: -1,
    aten._indices.default: 0,
    aten._values.default: -1,
}
_SAME_PARTS = {
    *(aten.t.default, aten.transpose.int, aten.detach.default, aten.alias.default),
}
_SAME_TOTAL = {
    *(aten.slice.Tensor, aten.sub.Tensor, aten.detach.default, aten.alias.default),
    aten._to_copy.default,
}
_COUNTS = ("arange", "full", "randint", "randperm", "scalar_tensor")


class Fakes:
    """Makes fakes for one device, and is what they live in."""

    def __init__(self, device: torch.device) -> None:
        """Of a model on that device."""
        self._device = device
        self.mode = FakeTensorMode(
            allow_non_fake_inputs=True, allow_fallback_kernels=False
        )

    def model(self, model: nn.Module) -> nn.Module:
        """A copy of a model whose parameters and buffers are fakes."""
        with _Copies(self):
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
        is_coalesced = matrix.layout != torch.sparse_coo or matrix.is_coalesced()
        made_of = tuple(self.tensor(part.detach()) for part in parts(matrix))
        return self.compressed(made_of, matrix.shape, matrix.layout, is_coalesced)

    def compressed(
        self,
        made_of: tuple[Tensor, ...],
        shape: torch.Size,
        layout: torch.layout,
        is_coalesced: bool = True,
    ) -> Tensor:
        """A fake of a sparse matrix made of these parts, fake or not."""
        with _disable_current_modes():
            *indices, values = (
                torch.empty(one.shape, dtype=one.dtype, device="meta")
                for one in made_of
            )
            if layout == torch.sparse_coo:
                meta = torch.sparse_coo_tensor(
                    indices[0],
                    values,
                    shape,
                    is_coalesced=is_coalesced,
                    check_invariants=False,
                )
            else:
                make: Any = torch.sparse_compressed_tensor  # whose stub is wrong
                meta = make(
                    *indices, values, shape, layout=layout, check_invariants=False
                )
            fake = FakeTensor(self.mode, meta, self._device)
        setattr(fake, GIVEN, made_of)
        if layout != torch.sparse_coo and isinstance(made_of[0], FakeTensor):
            setattr(made_of[0], TOTAL, values.numel())
        return fake

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Operations on fakes, and those on integers that they need.

        Raises:
            UnknownValueError: where an operation needs values that are not known.
        """
        with torch.random.fork_rng(devices=[]), self.mode, _Known(self):
            yield


class _Copies(TorchFunctionMode):
    """Copies of tensors are fakes; integers, which a model may count up, are copies."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.clone:  # how a Parameter copies itself
            return self._copy(args[0])
        if func is Tensor.__deepcopy__:
            tensor, known = args
            if id(tensor) not in known:
                known[id(tensor)] = self._copy(tensor)
            return known[id(tensor)]
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: Tensor) -> Tensor:
        copied = self._fakes.tensor(tensor)
        return tensor.detach().clone() if copied is tensor else copied


class _Known(TorchDispatchMode):
    """Computes what depends on known integers alone; bounds what does not."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes
        # Storages with values that were overwritten by unknown ones.
        self._unknown: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        tensors = [one for one in tree_leaves((args, kwargs)) if _is_tensor(one)]
        if _is_sparse_factory(func):
            return self._sparse(func, args, kwargs)
        made_of = getattr(args[0], GIVEN, None) if args else None
        if made_of is not None and func in _PARTS:
            return _alias(made_of[_PARTS[func]])
        if made_of is not None and func in _SAME_PARTS:
            view = func(*args, **kwargs)
            setattr(view, GIVEN, made_of)
            return view
        if all(map(self._is_known, tensors)) and (
            tensors or _has_values(func, args, kwargs)
        ):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if _overwrites(func) and not isinstance(args[0], FakeTensor):
            storage = args[0].untyped_storage()
            self._unknown[storage._cdata] = weakref.ref(storage)
            return args[0]
        if self._unknown:
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        try:
            if rule := SHAPES.get(func):
                with self._fakes.mode:
                    return rule(func, *args, **kwargs)
            output = func(*args, **kwargs)
            if func in _SAME_TOTAL and (total := getattr(args[0], TOTAL, None)):
                setattr(output, TOTAL, total)
            return output
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise UnknownValueError(
                f"{func} needs values that are not known; {WAY_OUT}"
            ) from error
        except UnsupportedOperatorException as error:
            raise UnknownValueError(
                f"nothing tells the shape of what {func} returns; take the step itself "
                "with fake=False"
            ) from error

    def _is_known(self, tensor: Tensor) -> bool:
        if isinstance(tensor, FakeTensor):
            return False
        if not self._unknown or tensor.layout != torch.strided:
            return True
        storage = tensor.untyped_storage()
        reference = self._unknown.get(storage._cdata)
        return reference is None or reference() is not storage

    def _faked(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor) or self._is_known(tensor):
            return tensor
        return self._fakes.mode.from_tensor(tensor)

    def _sparse(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = _bind(func, args, kwargs)
        layout = bound.get("layout") or torch.sparse_coo
        names: tuple[str, ...] = ("indices", "crow_indices", "ccol_indices")
        names += (
            "compressed_indices",
            "col_indices",
            "row_indices",
            "plain_indices",
            "values",
        )
        made_of = tuple(bound[name] for name in names if name in bound)
        return self._fakes.compressed(made_of, torch.Size(bound["size"]), layout)


def _is_tensor(one: Any) -> bool:
    return isinstance(one, Tensor)


def _alias(part: Tensor) -> Tensor:
    if isinstance(part, FakeTensor):
        alias = part.detach()
        if (total := getattr(part, TOTAL, None)) is not None:
            setattr(alias, TOTAL, total)
        return alias
    with _disable_current_modes():
        return part.detach()


def _has_values(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether what is made of no tensor is integers, or a single number."""
    if args and isinstance(args[0], list | tuple) and len(args[0]) == 0:
        return True
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    name = func._schema.name.partition("::")[2]
    return name in _COUNTS and not tree_any(lambda one: isinstance(one, float), args)


def _overwrites(func: Any) -> bool:
    """Whether an operation changes its first argument."""
    arguments = func._schema.arguments
    written = arguments[0].alias_info if arguments else None
    return (
        written is not None and written.is_write and str(arguments[0].type) == "Tensor"
    )


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
