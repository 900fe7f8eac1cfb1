"""Modules that keep their inputs alone, and are computed again for backward.

PyTorch's own checkpointing does it, between hooks of the module in place of a call
around it. What it lets pass in silence is refused: a parameter or an input that changed
since forward, and a module whose forward changes a buffer that its output may depend
on. Statistics of norms count a batch once.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import (
    _DEFAULT_DETERMINISM_MODE,
    _checkpoint_without_reentrant_generator,
)

from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.edges.rows import Rows, materialize
from pipeline_src.compression.keeper import Keeper
from pipeline_src.quant.references import Reference, check_unchanged, watch

Call = Generator[None, None, None]
Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


class Recomputed:
    """The hooks of one module."""

    def __init__(
        self, name: str, module: nn.Module, keeper: Callable[[], Keeper | None]
    ) -> None:
        """Nothing runs yet; keeper gives that of the forward pass that runs, if any."""
        self.name = name
        self.__name__ = f"input of {name}"  # of what is kept for it
        self.keeper = keeper
        self._written = _statistics(module)
        self._calls: list[tuple[Call, dict[str, Reference]] | None] = []

    def attach(self, module: nn.Module) -> list[Any]:
        """Hook it up; handles to remove the hooks by."""
        return [
            module.register_forward_pre_hook(self.enter, with_kwargs=True),
            module.register_forward_hook(
                self.leave, with_kwargs=True, always_call=True, prepend=True
            ),
        ]

    def enter(
        self, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Before forward."""
        keeper = self.keeper()
        if keeper is None:  # nothing is kept for backward
            self._calls.append(None)
            return None
        args, kwargs = tree_map_only(Rows, materialize, (args, kwargs))
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        parameters = [
            (f"parameter {name} of {self.name}", one)
            for name, one in module.named_parameters()
        ]
        kept = watch([*parameters, *((f"an input of {self.name}", i) for i in inputs)])
        buffers = {one.name: one for one in watch(module.named_buffers())}

        def contexts() -> Contexts:
            return nullcontext(), _AsInForward(module, kept)

        call = _checkpoint_without_reentrant_generator(
            module.forward,
            True,  # the state of random numbers is put back
            contexts,
            _DEFAULT_DETERMINISM_MODE,
            False,
            True,
            *args,
            **kwargs,
        )
        outer, keeper.function = keeper.function, self
        for one in inputs:
            keeper.exact(one)
        next(call)
        keeper.function = outer
        self._calls.append((call, buffers))
        return args, kwargs

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After forward, whether it came to an end or not.

        Raises:
            RuntimeError: if it changed a buffer that is no statistic of a norm.
        """
        found = self._calls.pop()
        if found is None:
            return
        call, before = found
        next(call, None)
        for name, buffer in module.named_buffers():
            reference = before.get(name)
            if name not in self._written and (
                reference is None
                or reference.tensor is not buffer
                or reference.version != buffer._version
            ):
                raise RuntimeError(
                    f"{self.name} cannot be computed again: its forward changes the "
                    f"buffer {name}, so a second one may give other values. Leave this "
                    "module out of Recompute(), or choose parts of it"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Calls belong to the process."""
        return {**self.__dict__, "_calls": []}


def recomputed_modules(
    model: nn.Module, config: CompressionConfig
) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules for which the last match says Recompute()."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or not config.recomputes(name, module):
            continue
        inside |= {id(one) for one in module.modules()}
        yield name, module


class _AsInForward:
    """Around backward's own forward: what norms write to are copies."""

    def __init__(self, module: nn.Module, kept: tuple[Reference, ...]) -> None:
        self.module, self.kept = module, kept
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        check_unchanged(self.kept)
        self._own = [
            (one, name, buffer)
            for one in self.module.modules()
            if isinstance(one, _NormBase)
            for name, buffer in one._buffers.items()
            if buffer is not None
        ]
        for one, name, buffer in self._own:
            one._buffers[name] = buffer.clone()

    def __exit__(self, *_: object) -> None:
        for one, name, buffer in self._own:
            one._buffers[name] = buffer
        self._own = []


def _statistics(module: nn.Module) -> set[str]:
    """Names of buffers that norms write and do not read while they train."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, one in module.named_modules()
        if isinstance(one, _NormBase)
        for name, _ in one.named_buffers(recurse=False)
    }
