"""One line on any model: compress, and the way back."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.edges.rows import Rows, materialize
from pipeline_src.compression.keeper import Keeper, Note
from pipeline_src.compression.recomputing import Recomputed, recomputed_modules
from pipeline_src.compression.rules import (
    attending,
    derivatives,
    dropping,
    extremes,
    linear,
    normalizing,
    rectifying,
    sloping,
)
from pipeline_src.compression.scope import Scope

_RULES: dict[Any, Any] = {
    **derivatives.RULES,
    **normalizing.RULES,
    **attending.RULES,
    **extremes.RULES,
    **linear.RULES,
    **rectifying.RULES,
    **dropping.RULES,
    **sloping.RULES,
}
Model = TypeVar("Model", bound=nn.Module)


class Attachment:
    """What opens and closes a scope around each forward pass of a model.

    It is reached from the model's hooks alone, and is copied and pickled with them.
    """

    def __init__(self, config: CompressionConfig) -> None:
        """Not at work yet."""
        self.config = config
        self.steps = 0
        self.notes: list[Note] = []
        self.handles: list[Any] = []
        self._scopes: list[Scope | None] = []

    def open(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Before forward.

        Raises:
            RuntimeError: under torch.compile, which cannot trace rules.
        """
        if torch._C._dynamo.eval_frame.get_eval_frame_callback():
            self._scopes.append(None)  # close() comes all the same
            raise RuntimeError(
                "a compressed model cannot be compiled: torch.compile cannot trace the "
                "rules that keep codes; call the model itself, not what torch.compile "
                "returned, or decompress() it and compile it with "
                "backend=compressed_backend(config)"
            )
        if not (model.training and torch.is_grad_enabled()):
            self._scopes.append(None)
            return
        tensors = [one for one in tree_flatten((args, kwargs))[0] if _is_tensor(one)]
        seed = self.config.seed * 7_368_787 + self.steps
        self.steps += 1
        scope = Scope(Keeper(model, self.config, seed, tensors, _RULES))
        self._scopes.append(scope)
        scope.begin()

    def close(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """After forward, whether it came to an end or not; the output is whole."""
        scope = self._scopes.pop()
        if scope is None:
            return None
        try:
            return tree_map_only(Rows, materialize, output)
        finally:
            scope.end()
            self.notes = scope.keeper.notes

    def keeper(self) -> Keeper | None:
        """Of the forward pass that runs; None: nothing is kept."""
        scope = self._scopes[-1] if self._scopes else None
        return scope.keeper if scope is not None else None

    def __getstate__(self) -> dict[str, Any]:
        """Scopes belong to the process, and handles to the model they were made for."""
        return {**self.__dict__, "_scopes": []}


def _is_tensor(one: Any) -> bool:
    return isinstance(one, Tensor)


def compress(model: Model, config: CompressionConfig | None = None) -> Model:
    """Make a model keep its activations for backward as codes, from now on.

    In place; the model is returned so that the call can be nested. Class, names,
    parameters and values of forward stay what they were; so does everything under
    eval() or no_grad().

    Args:
        model: any module; what it calls is compressed with it.
        config: bits, and choices for parts of the model.

    Under torch.compile forward refuses to run: rules cannot be traced. A model that is
    to be compiled takes compressed_backend in place of this.

    Raises:
        ValueError: if the model, or a part of it, is compressed already.
    """
    for name, module in model.named_modules():
        if attachment_of(module) is not None:
            raise ValueError(
                f"{name or 'the model'} is compressed already; call decompress() on it "
                "before"
            )
    attachment = Attachment(config or CompressionConfig())
    attachment.handles = [
        model.register_forward_pre_hook(attachment.open, with_kwargs=True),
        model.register_forward_hook(
            attachment.close, with_kwargs=True, always_call=True, prepend=True
        ),
    ]
    for name, module in recomputed_modules(model, attachment.config):
        recomputed = Recomputed(name or "the model", module, attachment.keeper)
        attachment.handles += recomputed.attach(module)
    return model


def decompress(model: Model) -> Model:
    """Undo `compress`: the model keeps again what PyTorch keeps.

    Raises:
        ValueError: if the model is not compressed.
    """
    attachment = attachment_of(model)
    if attachment is None:
        raise ValueError("the model is not compressed; there is nothing to undo")
    for module in model.modules():
        _remove_hooks(module)
    for handle in attachment.handles:
        handle.remove()
    return model


def attachment_of(model: nn.Module) -> Attachment | None:
    """What `compress` attached to a model, or None."""
    for hook in model._forward_pre_hooks.values():
        owner = _owner(hook)
        if isinstance(owner, Attachment):
            return owner
    return None


def _remove_hooks(module: nn.Module) -> None:
    """Ours; a copy of a model has hooks that no handle of ours leads to."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if _is_ours(_owner(hook))]:
            del hooks[key]
    with_kwargs = module._forward_pre_hooks_with_kwargs
    for key in [key for key in with_kwargs if key not in module._forward_pre_hooks]:
        del with_kwargs[key]


def _is_ours(owner: Any) -> bool:
    return isinstance(owner, Attachment | Recomputed)


def _owner(hook: Any) -> Any:
    return getattr(hook, "__self__", None)
