"""One forward pass under compression.

A scope is a mode for torch functions and a pair of hooks for saved tensors. The mode
looks up a rule for each function that the model calls: most rules run the function as
it is and give it an autograd node that keeps sources instead of tensors. What no rule
knows runs as PyTorch has it, and the hooks decide, tensor by tensor, what autograd
keeps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from pipeline_src.compression.edges.rows import edge_rule
from pipeline_src.compression.keeper import Keeper, unpack


class Scope(TorchFunctionMode):
    """Open from before the root's forward until after it."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self.keeper = keeper
        self._pack = keeper.pack
        self._hooks = saved_tensors_hooks(self._pack, unpack)

    def begin(self) -> None:
        """From here on functions are watched."""
        self._entered = nn.modules.module.register_module_forward_pre_hook(self._enter)
        self._left = nn.modules.module.register_module_forward_hook(
            self._leave, always_call=True
        )
        self._hooks.__enter__()
        self.__enter__()

    def end(self) -> None:
        """No longer; nothing stays but what backward needs."""
        self.__exit__(None, None, None)
        self._hooks.__exit__(None, None, None)
        self._entered.remove()
        self._left.remove()
        self.keeper.end()

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        self.keeper.modules.append(module)

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        # The root stays: its output is finished after its forward.
        modules = self.keeper.modules
        if len(modules) > 1 and modules[-1] is module:
            modules.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, keeper = kwargs or {}, self.keeper
        outer = keeper.function, keeper.arguments
        keeper.function, keeper.arguments = func, args
        try:
            if not self._is_on_top():
                return func(*args, **kwargs)
            found = edge_rule(keeper, func, args, kwargs)
            if found is not NotImplemented:
                return keeper.see(found)
            return keeper.see(keeper.plain(func, *args, **kwargs))
        finally:
            keeper.function, keeper.arguments = outer

    def _is_on_top(self) -> bool:
        """False inside somebody else's hooks, such as those of checkpointing."""
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return top is not None and top[0] == self._pack
