"""Messages on edges, as expressions of what nodes have.

Between `index_select` of node features and the sum over a node's edges stand functions
of single edges. A message is such an expression, a tree of functions over rows that are
gathered when some edges are asked for; nothing of the size of all edges is made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[..., Any]


class Need(IntEnum):
    """What gradients ask of the value of a leaf."""

    NOTHING = 0  # its shape
    LINEAR = 1
    NONLINEAR = 2


@dataclass(frozen=True, eq=False)
class Leaf:
    """A tensor that an expression reads: rows by an index, rows of edges, or whole."""

    tensor: Tensor
    index: Tensor | None = None  # (num_edges,): rows are gathered
    is_whole: bool = False  # a parameter or a scalar, the same for all edges

    @property
    def row_numel(self) -> int:
        """Values of a row."""
        return self.tensor.shape[1:].numel() if self.tensor.ndim else 1


@dataclass(frozen=True, eq=False)
class Mask:
    """Dropout's bits, row by row; a factor where they are set, 0 elsewhere."""

    packed: Tensor  # (num_edges, bytes) uint8
    shape: torch.Size  # of a row
    factor: float
    dtype: torch.dtype

    @classmethod
    def of(cls, kept: Tensor, factor: float, dtype: torch.dtype) -> "Mask":
        """Pack a bool tensor, (num_edges, ...)."""
        flat = kept.reshape(len(kept), -1)
        flat = functional.pad(flat, (0, -flat.shape[1] % 8)).view(len(kept), -1, 8)
        shift = torch.arange(8, dtype=torch.uint8, device=kept.device)
        packed = (flat.to(torch.uint8) << shift).sum(dim=-1, dtype=torch.uint8)
        return cls(packed, kept.shape[1:], factor, dtype)

    def rows(self, packed: Tensor) -> Tensor:
        """Factors of some rows of `packed`."""
        shift = torch.arange(8, dtype=torch.uint8, device=packed.device)
        bits = ((packed[..., None] >> shift) & 1).view(len(packed), -1)
        kept = bits[:, : self.shape.numel()].view(-1, *self.shape)
        return kept.to(self.dtype) * self.factor


@dataclass(frozen=True, eq=False)
class Call:
    """A function of expressions and constants."""

    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Expression = Leaf | Mask | Call


def children(expression: Expression) -> Iterator[Expression]:
    """Expressions that a call is made of."""
    if isinstance(expression, Call):
        yield from _within((*expression.args, *expression.kwargs.values()))


def _within(values: tuple[Any, ...] | list[Any]) -> Iterator[Expression]:
    for value in values:
        if isinstance(value, Leaf | Mask | Call):
            yield value
        elif isinstance(value, tuple | list):
            yield from _within(value)


def leaves(expression: Expression) -> list[Leaf]:
    """Each once, in order."""
    if isinstance(expression, Leaf):
        return [expression]
    found: dict[int, Leaf] = {}
    for child in children(expression):
        for leaf in leaves(child):
            found.setdefault(id(leaf), leaf)
    return list(found.values())


def rebuilt(part: Any, replace: Callable[[Any], Any]) -> Any:
    """An argument with its expressions replaced; what is no expression stays."""
    # Functions that call themselves from within another one would form a cycle, and
    # keep all that they see alive until the collector comes by.
    if isinstance(part, Leaf | Mask | Call):
        return replace(part)
    if isinstance(part, tuple | list) and not isinstance(part, torch.Size):
        return type(part)(rebuilt(one, replace) for one in part)
    return part


def without_tensors(
    expression: Expression, kept: tuple[Leaf, ...]
) -> tuple[Expression, tuple[Leaf, ...]]:
    """The same expression of leaves that hold no data, and these in their order."""
    empty = {
        id(leaf): Leaf(leaf.tensor.new_empty(0), leaf.index, leaf.is_whole)
        for leaf in kept
    }
    return _stripped(expression, empty), tuple(empty[id(leaf)] for leaf in kept)


def _stripped(expression: Expression, empty: dict[int, Leaf]) -> Expression:
    if isinstance(expression, Leaf):
        return empty[id(expression)]
    if isinstance(expression, Mask):
        return expression
    strip = partial(_stripped, empty=empty)
    kwargs = {key: rebuilt(one, strip) for key, one in expression.kwargs.items()}
    return Call(expression.function, rebuilt(expression.args, strip), kwargs)


def evaluate(
    expression: Expression,
    values: dict[int, Tensor],  # of leaves, by identity, for the edges asked for
    mask_rows: Callable[[Mask], Tensor],
) -> Any:
    """The expression for some edges."""
    if isinstance(expression, Leaf):
        return values[id(expression)]
    if isinstance(expression, Mask):
        return expression.rows(mask_rows(expression))
    fill = partial(evaluate, values=values, mask_rows=mask_rows)
    kwargs = {key: rebuilt(value, fill) for key, value in expression.kwargs.items()}
    return expression.function(*rebuilt(expression.args, fill), **kwargs)


def _methods(*names: str) -> set[Function]:
    homes = (torch, Tensor, functional)
    return {getattr(home, n) for n in names for home in homes if hasattr(home, n)}


_SUMS = _methods("add", "sub", "__add__", "__radd__", "__sub__", "__rsub__", "neg")
_SUMS |= _methods("__neg__", "rsub", "subtract")
_SHAPES = _methods("view", "reshape", "unsqueeze", "squeeze", "flatten", "transpose")
_SHAPES |= _methods("to", "float", "expand_as", "detach", "contiguous", "clone")
_REDUCTIONS = _methods("sum", "mean")
_JOINS = _methods("cat", "concat")
_PRODUCTS = _methods("mul", "__mul__", "__rmul__", "multiply")
_QUOTIENTS = _methods("div", "__truediv__", "true_divide")
_MAPS = _methods("linear", "matmul", "__matmul__")
_OTHERS = _methods(
    *("exp", "leaky_relu", "relu", "elu", "sigmoid", "tanh", "softplus", "silu"),
    *("gelu", "pow", "square", "__pow__", "sqrt", "clamp", "abs", "log", "log1p"),
)
# Functions that treat each edge by itself.
ROW_BY_ROW = (
    *(_SUMS | _SHAPES | _REDUCTIONS | _JOINS | _PRODUCTS | _QUOTIENTS),
    *(_MAPS | _OTHERS),
)
MAPS, JOINS, REDUCTIONS, PRODUCTS = _MAPS, _JOINS, _REDUCTIONS, _PRODUCTS
_LINEAR = _SUMS | _SHAPES | _REDUCTIONS | _JOINS


def needs(expression: Expression) -> tuple[dict[int, Need], bool]:
    """What the gradient asks of leaves, by identity; and whether there is one."""
    if isinstance(expression, Leaf):
        return {id(expression): Need.NOTHING}, expression.tensor.requires_grad
    if isinstance(expression, Mask):
        return {}, False
    parts = [needs(child) for child in children(expression)]
    trained = any(one for _, one in parts)
    total: dict[int, Need] = {}
    for place, (found, _) in enumerate(parts):
        others = any(one for other, (_, one) in enumerate(parts) if other != place)
        shared = {key for n, (one, _) in enumerate(parts) if n != place for key in one}
        for key, need in found.items():
            now = max(need, _asked(expression.function, place, others))
            if key in shared and expression.function not in _LINEAR:
                now = Need.NONLINEAR
            if not trained:
                now = max(need, Need.NOTHING)
            total[key] = max(total.get(key, Need.NOTHING), now)
    if expression.function in (Tensor.detach, torch.detach):
        trained = False
    return total, trained


def _asked(function: Function, place: int, others_trained: bool) -> Need:
    """Of an argument at a place, by the gradients of a function."""
    if function in _LINEAR:
        return Need.NOTHING
    if function in _PRODUCTS or function in _MAPS:
        return Need.LINEAR if others_trained else Need.NOTHING
    if function in _QUOTIENTS and place == 0:
        return Need.LINEAR if others_trained else Need.NOTHING
    return Need.NONLINEAR
