"""When to run a kernel compiled, and when plain.

Each kernel of this package is a plain function and its twin under `torch.compile`.
Both give the same bits on one device, so the choice never changes a result, only its
cost: a compiled kernel reads its input once or twice where the plain one makes dozens
of passes and as many temporaries, but the first call takes seconds to compile.

A kernel serves any number of rows; all else about its arguments, widths, bits, levels
and types, is a constant to the compiler. Such a constant costs a compilation for each
of its values, and is what makes a kernel fast on a GPU: with it offsets need no
division and accesses are wide, and a power of two is a shift instead of `pow` in
float64. So `fuse` is told which dimensions count rows, marks these alone as dynamic,
and a kernel that fixes one of them fails to compile instead of compiling again for
each number of rows. `fullgraph=True` makes a graph break an error as well.

The same bits: sums aside, whose order is the compiler's, each float operation rounds on
its own, as plain ones do. On a GPU the compiler would by default contract a product
and a sum to one rounding, and divide approximately; NUMERICS forbids both.

The noise is a hash in int32 that wraps around. In C++ an overflow of signed integers
has no meaning unless the compiler is told: g++ 12 unrolled a loop over 40 columns into
garbage in columns 16 to 39, and one over 64 words into a loop without an end. No option
of Inductor's says "wrap", so the flag travels with one that it hands on as text.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline_src.quant.compilers import fill_tables_once, plain_kernels_warning

# Below this many values the plain version ends before a compilation would start.
MIN_NUMEL_ON_CPU = 2**20
# Inductor's: no fused multiply-add, division rounded to nearest, integers that wrap.
NUMERICS = {
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
    "cpp.enable_floating_point_contract_flag": "off -fwrapv",
}
# Of the ways to run a kernel that are timed on a GPU, none that spills registers.
NO_SPILLS = {"triton.spill_threshold": 0}
# A compiler left to itself keeps what is used often or takes many operations, in a
# tensor of the full size that one kernel writes and the next one reads, and compares
# what two loops access before it has joined their dimensions.
_ONE_PASS = {
    "realize_opcount_threshold": 2**20,
    "realize_reads_threshold": 2**20,
    "loop_ordering_after_fusion": False,
}
# Who gets kernels instead of the compiler, where sizes are wanted and not values.
_substitutes: list[Callable[[Callable[..., Any], tuple[Any, ...]], Any]] = []
# Modules of one kernel: one per width, packet and law; a number of rows adds none.
_MAX_MODULES = 256


def fuse(
    plain: Callable[..., Any],  # of positional arguments
    rows: Mapping[str, int],
    one_pass: bool = False,
) -> Callable[..., Any]:
    """The compiled twin of a plain kernel; the compiler is loaded at its first call.

    `rows` names the tensors whose number of rows is free, and the dimension of each
    that counts them; "codes.packed" is a field of an argument, and a tuple stands for
    all tensors in it. Fewer than two rows run plain: to a compiler, 1 is a constant.
    `one_pass` asks for a single loop over the rows, whatever is computed twice for it.

    The twin sees aliases without a gradient, so that neither what stands behind a view,
    nor the gradient's mode, nor a Parameter's type makes it compile again.
    """
    names = tuple(inspect.signature(plain).parameters)
    counted = tuple((attrgetter(path), dim) for path, dim in rows.items())
    twin: Callable[..., Any] | None = None

    @functools.wraps(plain)
    @torch.no_grad()
    def fused(*arguments: Any) -> Any:
        nonlocal twin
        if _substitutes:
            return _substitutes[-1](plain, arguments)
        from torch._dynamo import config, mark_dynamic

        if twin is None:
            config.recompile_limit = max(config.recompile_limit, _MAX_MODULES)
            fill_tables_once()
            options: dict[str, Any] = NUMERICS | NO_SPILLS
            options |= _ONE_PASS if one_pass else {}
            twin = torch.compile(plain, fullgraph=True, dynamic=False, options=options)
        aliases = tuple(map(_alias, arguments))
        named = SimpleNamespace(**dict(zip(names, aliases, strict=True)))
        marks = [(one, d) for get, d in counted for one in _tensors(get(named))]
        if any(tensor.shape[dim] < 2 for tensor, dim in marks):
            return plain(*aliases)
        for tensor, dim in marks:
            mark_dynamic(tensor, dim)
        return twin(*aliases)

    return fused


@contextmanager
def instead_of_compiled(
    run: Callable[[Callable[..., Any], tuple[Any, ...]], Any],
) -> Iterator[None]:
    """Hand plain kernels and their arguments to run, wherever compiled ones were due.

    For whoever follows what is allocated: a compiled kernel allocates its results and
    little else, and no mode sees what it does.
    """
    _substitutes.append(run)
    try:
        yield
    finally:
        _substitutes.pop()


def _alias(argument: Any) -> Any:
    """The same data without gradient or marks; containers are tuples."""
    if isinstance(argument, Tensor):
        return argument.detach()
    if not isinstance(argument, tuple):
        return argument
    parts = map(_alias, argument)
    # A NamedTuple takes its fields one by one.
    return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)


def _tensors(argument: Any) -> Iterator[Tensor]:
    """All tensors of an argument, in order."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, tuple):
        for part in argument:
            yield from _tensors(part)


def fusion_pays(numel: int, device: torch.device, compile: str) -> bool:
    """Decide for one call: always, never, or ("auto") where it is worth it."""
    if compile == "auto":
        return device.type == "cuda" or numel >= MIN_NUMEL_ON_CPU
    return compile == "true"


def resolve_compile(compile: str, device: torch.device) -> str:
    """Turn a wish into what this machine can do: plain where nothing can compile.

    Raises:
        ValueError: if compile is not one of COMPILE_CHOICES.
    """
    warning = plain_kernels_warning(compile)
    if warning is None or (device.type == "cuda" and compile != "false"):
        return compile
    return "false"
