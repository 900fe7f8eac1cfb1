"""Edge-sized tensors that are never whole: gathered rows, and what is made of them.

`index_select` of node features gives, for many edges, a tensor without data: it knows
its shape, and the expression that makes its rows (compression/messages.py). Functions
of single edges extend the expression; a sum over the edges of a node evaluates it
(compression/reducing.py); anything else makes the tensor that PyTorch would have made.
An expression that shrinks to a few values an edge, such as a score of two wide rows,
is made at once: softmax reads it three times.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from pipeline_src.compression.edges.messages import (
    JOINS,
    MAPS,
    PRODUCTS,
    REDUCTIONS,
    ROW_BY_ROW,
    Call,
    Expression,
    Leaf,
    Mask,
    Need,
    leaves,
    needs,
)
from pipeline_src.compression.edges.receivers import receivers_of
from pipeline_src.compression.edges.reducing import (
    EdgeProduct,
    Evaluate,
    Plan,
    sources_of,
)
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.rules.linear import Aggregated, Origin
from pipeline_src.compression.uses import Use
from pipeline_src.compression.values import is_plain

# Fewer values than this are gathered as they are.
MIN_EDGE_VALUES = 2**16
_SHRINKS = 4  # times fewer values an edge
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Rows(Tensor):
    """A tensor of edge rows, (num_edges, ...), that has no data."""

    expression: Expression
    row_numel: int  # values of the widest row that the expression makes
    keeper: Keeper

    @staticmethod
    def __new__(
        cls,
        expression: Expression,
        shape: torch.Size,  # (num_edges, ...)
        dtype: torch.dtype,
        row_numel: int,
        keeper: Keeper,
    ) -> "Rows":
        """Of an expression whose widest row so far has so many values."""
        self: Rows = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=keeper.device
        )
        self.expression, self.keeper = expression, keeper
        self.row_numel = max(row_numel, shape[1:].numel())
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Outside of a scope: what PyTorch would have."""
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Rows, materialize, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Nothing gets here but code that goes round torch functions."""
        raise NotImplementedError(
            f"{func} was given edge rows that are not made yet; a compiled extension "
            "does not see them: keep this part with Part(...) and Keep()"
        )


_QUESTIONS = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.ndimension, Tensor.__len__),
    *(Tensor.stride, Tensor.is_floating_point, Tensor.is_complex, Tensor.nelement),
    *(torch.is_floating_point, torch.numel, Tensor.get_device, Tensor.element_size),
    *(
        getattr(Tensor, name).__get__
        for name in (
            *("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse"),
            *("is_cpu", "is_quantized", "is_meta", "is_mps", "is_xpu"),
        )
    ),
}


def materialize(rows: Rows) -> Tensor:
    """The tensor of all edges, as PyTorch would have made it."""
    plan = Plan.of(rows.expression, rows.row_numel, len(rows))
    output = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    return _evaluated(rows.keeper, plan, output)


def _evaluated(keeper: Keeper, plan: Plan, output: Tensor) -> Tensor:
    tensors = [leaf.tensor for leaf in plan.leaves]
    asked, is_trained = needs(plan.expression)
    if not (torch.is_grad_enabled() and is_trained):
        with torch.no_grad():
            return Evaluate.apply(plan, output, (None,) * len(tensors), *tensors)
    if plan.reduce != "sum":  # which messages are the extremes is asked again
        asked = dict.fromkeys(asked, Need.NONLINEAR)
    # Tensors of nodes are small beside those of edges that are not kept.
    source = partial(keeper.source_of_its_own, use=Use.SMOOTH)
    sources = sources_of(plan, asked, source, keeper.exact)
    return Evaluate.apply(plan, output, sources, *tensors)


def edge_rule(keeper: Keeper, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a function that has to do with edges, or NotImplemented."""
    if func in _GATHERS:
        return _gather(keeper, *args, **kwargs)
    if func is Tensor.__getitem__ and isinstance(args[1], Tensor):
        return _gather(keeper, args[0], 0, args[1])
    if not _any_rows((args, kwargs)):
        return NotImplemented
    if func in _QUESTIONS:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if func == _REQUIRES_GRAD:
        return needs(args[0].expression)[1]
    if func in (Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full):
        rows = args[0]
        defaults = {"dtype": rows.dtype, "device": rows.device}
        empty = torch.empty((), **defaults)
        return func(empty, *args[1:], **kwargs)
    if func is Tensor.expand_as and not isinstance(args[0], Rows):
        return args[0].expand(args[1].shape)
    if func in _SCATTERS:
        found = _scatter(keeper, func, *args, **kwargs)
        if found is not NotImplemented:
            return found
    if func is functional.dropout:
        return _dropout(keeper, *args, **kwargs)
    if func in ROW_BY_ROW:
        found = _extend(keeper, func, args, kwargs)
        if found is not NotImplemented:
            return found
    args, kwargs = tree_map_only(Rows, materialize, (args, kwargs))
    return keeper.plain(func, *args, **kwargs)


_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_GATHERS = (torch.index_select, Tensor.index_select)
_SCATTERS = (Tensor.scatter_add_, Tensor.scatter_reduce_, Tensor.index_add_)


def _any_rows(values: Any) -> bool:
    if isinstance(values, Rows):
        return True
    if isinstance(values, tuple | list):
        return any(_any_rows(one) for one in values)
    return isinstance(values, dict) and any(map(_any_rows, values.values()))


def _gather(keeper: Keeper, input: Any, dim: Any, index: Any) -> Any:
    if (
        type(input) is Rows
        or keeper.is_in_norm
        or not isinstance(input, Tensor)
        or input.layout != torch.strided
        or input.dtype not in _FLOATS
        or input.ndim == 0
        or dim % input.ndim != 0
        or index.ndim != 1
        or index.dtype not in (torch.int64, torch.int32)
        or not is_plain(index)
        or torch.is_autocast_enabled(input.device.type)
        or index.numel() * max(1, input.shape[1:].numel()) < MIN_EDGE_VALUES
    ):
        return NotImplemented
    index = keeper.index(index)
    leaf = Leaf(input, index)
    shape = torch.Size((len(index), *input.shape[1:]))
    return Rows(leaf, shape, input.dtype, leaf.row_numel, keeper)


def _expression_of(value: Any, num_edges: int) -> Any:
    """A part of a call: an expression, or a constant; NotImplemented if unclear."""
    if isinstance(value, Rows):
        return value.expression
    if not isinstance(value, Tensor):
        return value
    if value.ndim and len(value) == num_edges:
        return Leaf(value)
    # The same for all edges: a scalar, a parameter, a row to broadcast.
    return Leaf(value, is_whole=True)


def _extend(keeper: Keeper, func: Any, args: Any, kwargs: Any) -> Any:
    """The function of rows as rows, if it treats each edge by itself."""
    found: list[Rows] = []
    tree_map_only(Rows, found.append, (args, kwargs))
    first = found[0]
    num_edges = len(first)
    if any(len(one) != num_edges for one in found) or kwargs.keys() - {
        *("dim", "keepdim", "negative_slope", "alpha", "min", "max", "dtype"),
        *("inplace", "approximate", "beta", "threshold", "other", "input"),
    }:
        return NotImplemented
    if kwargs.get("inplace") or "out" in kwargs:
        return NotImplemented
    joined = func in JOINS

    # Tried with two numbers of edges that nothing else has: what is left of a row must
    # not depend on how many there are.
    shapes = []
    for edges in (7919, 7927):
        arguments = _like(args, num_edges, edges)
        try:
            result = func(
                *arguments, **{k: _like(v, num_edges, edges) for k, v in kwargs.items()}
            )
        except (RuntimeError, IndexError, ValueError):
            return NotImplemented
        if not isinstance(result, Tensor) or result.ndim == 0 or len(result) != edges:
            return NotImplemented
        shapes.append(result)
    if shapes[0].shape[1:] != shapes[1].shape[1:] or (
        joined and _joins_edges(args, kwargs)
    ):
        return NotImplemented
    if func in MAPS and not _maps_rows(func, args):
        return NotImplemented
    call = Call(
        func,
        tuple(_free(_expressions_of(a, num_edges), num_edges) for a in args),
        {key: _expressions_of(value, num_edges) for key, value in kwargs.items()},
    )
    result = shapes[0]
    shape = torch.Size((num_edges, *result.shape[1:]))
    widest = max(one.row_numel for one in found)
    rows = Rows(call, shape, result.dtype, widest, keeper)
    shrunk = shape[1:].numel() * _SHRINKS <= max(one.shape[1:].numel() for one in found)
    if func in REDUCTIONS and shrunk:
        return materialize(rows)
    return rows


def _expressions_of(value: Any, num_edges: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_expressions_of(one, num_edges) for one in value)
    return _expression_of(value, num_edges)


def _like(value: Any, num_edges: int, edges: int) -> Any:
    """An argument for another number of edges, without data."""
    if type(value) is int and value == num_edges:
        return edges
    if isinstance(value, tuple | list):
        return type(value)(_like(one, num_edges, edges) for one in value)
    if isinstance(value, Tensor):
        shape = value.shape
        if isinstance(value, Rows) or (value.ndim and len(value) == num_edges):
            shape = torch.Size((edges, *shape[1:]))
        return torch.empty(shape, dtype=value.dtype, device="meta")
    return value


def _free(value: Any, num_edges: int) -> Any:
    """Sizes of all edges become -1: a range has fewer."""
    if isinstance(value, int) and not isinstance(value, bool) and value == num_edges:
        return -1
    if (
        isinstance(value, tuple | list)
        and value
        and all(isinstance(one, int) for one in value)
    ):
        return type(value)(-1 if one == num_edges else one for one in value)
    return value


def _joins_edges(args: Any, kwargs: Any) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    return dim % args[0][0].ndim == 0


def _maps_rows(func: Any, args: Any) -> bool:
    """Whether the first argument alone counts edges."""
    return isinstance(args[0], Rows) and not any(
        isinstance(one, Tensor) and (isinstance(one, Rows) or one.ndim > 2)
        for one in args[1:]
    )


def _dropout(
    keeper: Keeper,
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    """Dropout of rows; PyTorch's noise, as bits."""
    if not training or p == 0.0:
        return input
    if not 0.0 < p < 1.0 or inplace:
        return keeper.plain(
            functional.dropout, materialize(input), p, training, inplace
        )
    if input.device.type == "cuda":
        ones = torch.ones(input.shape, dtype=input.dtype, device=input.device)
        _, kept = torch.native_dropout(ones, p, True)
        factor = 1.0 / (1.0 - p)
    else:
        noise = torch.empty(input.shape, dtype=input.dtype).bernoulli_(1 - p)
        kept = noise > 0
        factor = float(torch.ones((), dtype=input.dtype).div_(1 - p))
    mask = Mask.of(kept, factor, input.dtype)
    call = Call(torch.mul, (input.expression, mask), {})
    return Rows(call, input.shape, input.dtype, input.row_numel, keeper)


def _scatter(
    keeper: Keeper,
    func: Any,
    output: Any,
    dim: Any,
    index: Any,
    source: Any = None,
    reduce: str = "sum",
    include_self: bool = True,
    **named: Any,
) -> Any:
    """A sum, a maximum or a minimum over the edges of each node."""
    source = named.pop("src", source)
    if (
        named
        or not isinstance(source, Rows)
        or isinstance(output, Rows)
        or output.requires_grad
        or output.shape[1:] != source.shape[1:]
        or dim % output.ndim != 0
        or output.dtype != source.dtype
    ):
        return NotImplemented
    if func is Tensor.scatter_reduce_:
        if reduce not in ("amax", "amin") or include_self:
            return NotImplemented
    else:
        reduce = "sum"
    if index.ndim > 1:
        if any(
            stride
            for stride, size in zip(index.stride()[1:], index.shape[1:], strict=True)
            if size > 1
        ):
            return NotImplemented
        index = index[(slice(None), *(0,) * (index.ndim - 1))]
    receivers = receivers_of(keeper.index(index), len(output))
    plan = Plan.of(source.expression, source.row_numel, len(source), receivers, reduce)
    result = _evaluated(keeper, plan, output)
    place = _mapped_leaf(plan)
    if place is not None and reduce == "sum" and result.ndim == 2:
        sources = [
            None if n == place else keeper.exact(leaf.tensor)
            for n, leaf in enumerate(plan.leaves)
        ]
        product = EdgeProduct(plan, tuple(sources), place)
        made_by = Aggregated(Origin(plan.leaves[place].tensor), product)
        keeper.ledger.of(result).made_by = made_by
    return result


def _mapped_leaf(plan: Plan) -> int | None:
    """Place of the one leaf that messages are a fixed multiple of, if that is so."""
    expression = plan.expression
    factors: tuple[Any, ...] = (expression,)
    if isinstance(expression, Call) and expression.function in PRODUCTS:
        factors = expression.args
    gathered = [
        one for one in factors if isinstance(one, Leaf) and one.index is not None
    ]
    others = [one for one in factors if one not in gathered]
    if len(gathered) != 1 or gathered[0].tensor.ndim != 2:
        return None
    fixed = [
        leaf
        for other in others
        if isinstance(other, Leaf | Call)
        for leaf in leaves(other)
    ]
    if any(
        leaf.tensor.requires_grad
        or leaf is gathered[0]
        or leaf.row_numel != 1
        or leaf.is_whole
        for leaf in fixed
    ):
        return None
    return plan.leaves.index(gathered[0])
