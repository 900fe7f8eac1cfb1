"""Which kernels the library compiles, and what its own operations call them with.

A case is a public operation, not a hand-made call: its arguments are those that the
operation builds, views and types as they come. While recording, each compiled twin is
replaced by a stand-in that notes its arguments and runs the plain function.
"""

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tests.gpu_proof.pretended_cuda import clones_of, tensors_of

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "pipeline_src").rglob("*.py"), Path(__file__).parent / "planted.py"]


class Kernel(NamedTuple):
    """A plain function, its compiled twin, and the module that holds both."""

    plain: Callable[..., Any]
    fused: Callable[..., Any]
    module: Any


class Call(NamedTuple):
    """One call of a kernel."""

    kernel: str
    arguments: tuple[Any, ...]  # as they were before; copies where they hold data
    arguments_after: tuple[Any, ...]
    results: Any


@functools.cache
def kernels() -> dict[str, Kernel]:
    """All that is given to `fuse`, by module and name of the twin, `_fused` left out.

    A plain function may have several twins, which differ in the dimension that counts
    rows. Faults that were planted on purpose are among them, as planted.*.
    """
    found: dict[str, Kernel] = {}
    for path in sorted(FILES):
        text = path.read_text(encoding="utf-8")
        twins = re.findall(r"^(\w+)_fused = fuse\(", text, re.M)
        calls = re.findall(r"(?<!def )\bfuse\(", text)
        assert len(calls) == len(twins), f"{path}: name each twin NAME_fused"
        if not twins:
            continue
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(dotted)
        for twin in twins:
            fused = getattr(module, f"{twin}_fused")
            name = f"{path.stem}.{twin}"
            assert name not in found, f"two kernels are called {name}"
            found[name] = Kernel(fused.__wrapped__, fused, module)
    return found


@contextmanager
def recorded(
    holding_data: bool,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[list[Call]]:
    """The calls of kernels within, in order; plain functions run within `around`."""
    calls: list[Call] = []

    def copied(tree: Any) -> Any:
        return clones_of(tree) if holding_data else tree

    def stand_in(name: str, kernel: Kernel) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = copied(arguments)
            with around():
                results = kernel.plain(*arguments)
            calls.append(Call(name, before, copied(arguments), copied(results)))
            return results

        return call

    with ExitStack() as stack:
        for name, kernel in kernels().items():
            replacement = stand_in(name, kernel)
            twin = f"{name.partition('.')[2]}_fused"
            stack.enter_context(mock.patch.object(kernel.module, twin, replacement))
        yield calls


def results_of(call: Call) -> list[Any]:
    """The tensors that a call returned, then those it was given, as it left them."""
    return tensors_of(call.results) + tensors_of(call.arguments_after)
