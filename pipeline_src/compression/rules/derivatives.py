"""Functions whose derivative is kept in place of their input or output.

Where each value of x goes into one value of y = f(x), the gradient is

    grad x = grad y * f'(x),

and linear in f'(x), however crooked f is. Codes of f'(x) are right in the mean, so the
gradient is, too, at any number of bits; codes of x or y, of which f'(x) would be made,
are not. The derivative is PyTorch's own, taken run by run in forward. Its noise goes
into all gradients before, as that of a product's factor, and nothing shares it.

Bounded derivatives become evenly spaced codes. Those with poles, and exp, which spans
many sizes, become floats of eight bits (compression/float8.py). Squares become
variances, and those roots: near a root's pole any noise is too much, and they stay
exact, except in norms over all nodes, whose variance is no small number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from pipeline_src.compression.config import Codes
from pipeline_src.compression.float8 import Float8
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.sources import Source, runs_of
from pipeline_src.compression.uses import Use
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Runs(Source):
    """Sources of runs, one by one."""

    sources: tuple[Source, ...]

    @classmethod
    def of(cls, like: Tensor, make: Callable[[slice], Source]) -> "Runs":
        """Make one for each run of a shape."""
        runs = runs_of(like.shape, like.device)
        sources = tuple(make(run) for run in runs)
        return cls(like.shape, like.dtype, like.device, sources)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        index = runs_of(self.shape, self.device).index(run)
        return self.sources[index].rows(slice(0, run.stop - run.start))

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        for source in self.sources:
            yield from source.parts()


def codes_of(keeper: Keeper, input: Any, use: Use = Use.PRODUCT) -> Codes | None:
    """How a rule keeps what it makes of an input; None: PyTorch keeps it, exactly."""
    if (
        not isinstance(input, Tensor)
        or not input.requires_grad
        or input.layout != torch.strided
        or input.ndim == 0
        or input.dtype not in _FLOATS
        or input.numel() < keeper.config.min_numel
        or torch.is_autocast_enabled(input.device.type)
    ):
        return None
    choice = keeper.choice(use)
    return choice if isinstance(choice, Codes) and choice.bits != 32 else None


def kept(
    keeper: Keeper, like: Tensor, make: Callable[[slice], Tensor], codes: Codes | None
) -> Source:
    """What is made run by run of a tensor's rows: in codes; None: floats of 8 bits."""

    def source(run: slice) -> Source:
        rows = make(run)
        if codes is None:
            return Float8.of(rows, keeper.seed(rows.device))
        return keeper.coded(rows, codes)

    return Runs.of(like, source)


def _derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """PyTorch's, of outputs that each have inputs of their own."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        (found,) = torch.autograd.grad(function(x).sum(), x)
    return found


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def pointwise(keeper: Keeper, func: Any, *args: Any, **named: Any) -> Any:
    """Rule for functions of single values, the first argument's."""
    codes = codes_of(keeper, args[0] if args else None)
    others = (*args[1:], *named.values())
    is_inplace = func in _FLAGGED and (args[2:] == (True,) or named.get("inplace"))
    if (
        codes is None
        or is_inplace
        or (func in _SILENT and (args[1:] == (True,) or named.get("inplace")))
        or any(isinstance(one, Tensor) for one in others)
        or _is_written_or_cast(named)
        or (_is_square(func, others) and not keeper.is_in_norm)
    ):
        return func(*args, **named)
    x = args[0]
    with torch.no_grad():
        output = func(*args, **named)
    if output.shape != x.shape or output.dtype != x.dtype:
        return func(*args, **named)

    def derivative(run: slice) -> Tensor:
        return _derivative(lambda rows: func(rows, *args[1:], **named), x[run])

    has_pole = func in _POLES and not _is_square(func, others)
    source = kept(keeper, x, derivative, None if has_pole else codes)
    return _Pointwise.apply(x, Known(output), source)


def product(keeper: Keeper, func: Any, one: Any, other: Any, **named: Any) -> Any:
    """Rule for products: those of a tensor with itself."""
    is_square = one is other and not named and keeper.is_in_norm
    if is_square and codes_of(keeper, one) is not None:
        return pointwise(keeper, torch.square, one)
    return keeper.as_it_is(func, one, other, **named)


def _is_written_or_cast(named: dict[str, Any]) -> bool:
    return named.get("out") is not None or named.get("dtype") is not None


def _is_square(func: Any, others: tuple[Any, ...]) -> bool:
    return func in _SQUARES or (func in _POWERS and others == (2,))


class _Pointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Known, derivative: Source) -> Tensor:
        ctx.derivative = derivative
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        result = torch.empty_like(gradient)
        for run in runs_of(gradient.shape, gradient.device):
            torch.mul(gradient[run], ctx.derivative.rows(run), out=result[run])
        return result, None, None


def reduction(place: int, keeper: Keeper, func: Any, *args: Any, **named: Any) -> Any:
    """Rule for deviations and lengths over a dimension, or over all of them."""
    codes = codes_of(keeper, args[0] if args else None)
    if codes is None or _is_written_or_cast(named):
        return func(*args, **named)
    x = args[0]
    with torch.no_grad():
        output = func(*args, **named)
    dim = named.get("dim", args[place] if len(args) > place else None)
    if isinstance(dim, tuple | list) and len(dim) == 1:
        (dim,) = dim
    if (
        not isinstance(output, Tensor)
        or output.dtype != x.dtype
        or (output.ndim not in (0, x.ndim) and type(dim) is not int)
    ):
        return func(*args, **named)
    missing = None if output.ndim in (0, x.ndim) else dim
    whole = _derivative(lambda rows: func(rows, *args[1:], **named), x)
    source = kept(keeper, x, lambda run: whole[run], codes)
    return _Reduction.apply(x, Known(output), source, missing)


class _Reduction(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Known, derivative: Source, missing: int | None
    ) -> Tensor:
        ctx.derivative, ctx.missing = derivative, missing
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        derivative: Source = ctx.derivative
        if ctx.missing is not None:
            gradient = gradient.unsqueeze(ctx.missing)
        gradient = gradient.expand(derivative.shape)
        result = gradient.new_empty(derivative.shape)
        for run in runs_of(derivative.shape, derivative.device):
            torch.mul(gradient[run], derivative.rows(run), out=result[run])
        return result, None, None, None


def _methods(*names: str) -> list[Any]:
    homes = (torch, Tensor, functional, torch.special, torch.linalg)
    return [getattr(home, n) for n in names for home in homes if hasattr(home, n)]


_SQUARES = frozenset(_methods("square"))
_POWERS = frozenset(_methods("pow", "__pow__", "float_power"))
_POLES = frozenset(
    [
        *_methods("log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal"),
        *(_POWERS | _SQUARES),
        *(Tensor.__rtruediv__, *_methods("exp", "expm1", "exp2")),
    ]
)
_SMOOTH = _methods(
    *("sigmoid", "tanh", "sin", "cos", "gelu", "softplus", "logsigmoid"),
    *("erf", "atan", "asinh"),
)
# With a flag for working in place, behind the input or behind another argument.
_SILENT = frozenset((functional.silu, functional.mish, functional.selu))
_FLAGGED = frozenset((functional.elu, functional.celu))
_MULTIPLY = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
# Place of the dimension among the arguments.
_REDUCTIONS = {
    **dict.fromkeys((torch.std, Tensor.std, torch.var, Tensor.var), 1),
    **dict.fromkeys((torch.logsumexp, Tensor.logsumexp), 1),
    **dict.fromkeys((torch.norm, Tensor.norm, torch.linalg.vector_norm), 2),
}
RULES: dict[Any, Any] = {
    **dict.fromkeys((*_POLES, *_SMOOTH, *_SILENT, *_FLAGGED), pointwise),
    **dict.fromkeys(_MULTIPLY, product),
    **{func: partial(reduction, place) for func, place in _REDUCTIONS.items()},
}
