"""What the gradient of a torch function does with the tensors that autograd keeps.

Codes are right in the mean. A gradient that is linear in what was kept is therefore
right in the mean, too, whatever the number of bits. One that is a smooth function of it
is biased by half its second derivative times the variance of the codes: with eight bits
that is small. One that has poles, or compares values, needs them exactly. So does a
square, though its gradient is linear: squares become variances, small differences of
large numbers, and noise drowns those. ReLU and its kin read the sign and nothing else.
"""

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[..., Any]


class Use(enum.Enum):
    """How a gradient depends on what was kept."""

    LINEAR = enum.auto()
    PRODUCT = enum.auto()  # linear, and noise goes into gradients of other activations
    SMOOTH = enum.auto()
    SIGN = enum.auto()
    EXACT = enum.auto()  # poles, comparisons
    UNKNOWN = enum.auto()


def _methods(*names: str) -> list[Function]:
    """Functions of torch and methods of a tensor by their names, as far as there."""
    homes = (torch, Tensor, functional, torch.linalg, torch.special)
    return [
        getattr(home, name) for name in names for home in homes if hasattr(home, name)
    ]


_USES: dict[Use, list[Function]] = {
    Use.LINEAR: _methods(
        *("linear", "bilinear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm"),
        *("addbmm", "addmv", "dot", "vdot", "inner", "outer", "ger", "einsum"),
        *("tensordot", "mul", "mul_", "multiply", "addcmul", "lerp"),
        *(
            "__matmul__",
            "__rmatmul__",
            "__mul__",
            "__rmul__",
            "__imul__",
            "chain_matmul",
        ),
        *("conv1d", "conv2d", "conv3d", "batch_norm", "embedding_bag"),
    ),
    Use.SMOOTH: _methods(
        *("exp", "exp_", "expm1", "sigmoid", "sigmoid_", "tanh", "tanh_", "sin", "cos"),
        *("softmax", "log_softmax", "logsumexp", "elu", "elu_", "selu", "celu", "gelu"),
        *("silu", "mish", "softplus", "logsigmoid", "glu", "hardswish"),
        *("layer_norm", "group_norm", "instance_norm", "rms_norm"),
    ),
    Use.SIGN: _methods("relu", "relu_", "leaky_relu", "leaky_relu_", "threshold_"),
    Use.EXACT: _methods(
        *("div", "div_", "divide", "true_divide", "__truediv__", "__rtruediv__"),
        *(
            "log",
            "log1p",
            "log2",
            "log10",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "pow",
            "pow_",
        ),
        *(
            "square",
            "__pow__",
            "__rpow__",
            "norm",
            "vector_norm",
            "normalize",
            "std",
            "var",
        ),
        *("cosine_similarity", "clamp", "clamp_", "max", "min", "amax", "amin"),
        *("maximum", "minimum", "abs", "scatter_reduce", "scatter_reduce_", "sort"),
        *(
            "cdist",
            "pairwise_distance",
            "prod",
            "cumprod",
            "where",
            "hardtanh",
            "relu6",
        ),
        *("scaled_dot_product_attention", "multi_head_attention_forward"),
        *("cross_entropy", "nll_loss", "binary_cross_entropy", "mse_loss"),
    ),
}
_USE_OF = {function: use for use, functions in _USES.items() for function in functions}


def use_of(function: Function | None, arguments: tuple[Any, ...] = ()) -> Use:
    """What the gradient of a function does with what was kept."""
    if function is None:
        return Use.UNKNOWN
    try:
        use = _USE_OF.get(function, Use.UNKNOWN)
    except TypeError:  # not hashable
        return Use.UNKNOWN
    is_square = len(arguments) == 2 and arguments[0] is arguments[1]
    return Use.EXACT if use is Use.LINEAR and is_square else use
