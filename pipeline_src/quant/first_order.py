"""How the library's backward passes are run: once, and in float32."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that cannot be differentiated, and that autocast leaves alone.

    Gradients of gradients would miss what was compressed, so PyTorch refuses them.
    Autocast may be on where backward is called, and would round products of float32
    tensors, or mix types.
    """

    @functools.wraps(backward)
    def in_float32(ctx: Any, *gradients: Any) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return once_differentiable(in_float32)
