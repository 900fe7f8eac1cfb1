"""Which numbers the package takes: one rule, asked at every public door.

Values are float32, or float16 and bfloat16, each of which is a float32 number and is
widened to it without loss. Everything is computed in float32 and values that are read
back are float32; a gradient has the type of what it is the gradient of. Nothing else
is taken: integers have no values between two codes, and float64 would lose digits, or
its range, without a word. Only where values are kept whole, and nothing is coded,
float64 stays float64.
"""

import torch
from torch import Tensor

SUPPORTED = (torch.float16, torch.bfloat16, torch.float32)


def check_dtype(x: Tensor, name: str, supported: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of any other type.

    Raises:
        TypeError: naming the types that are supported.
    """
    if x.dtype not in supported:
        names = ", ".join(str(dtype) for dtype in supported)
        raise TypeError(
            f"{name} must be of type {names}, got {x.dtype}; convert it before"
        )


def as_float32(x: Tensor, name: str = "x") -> Tensor:
    """The same values as float32, differentiably; x itself if it is float32.

    Raises:
        TypeError: if x is not of one of SUPPORTED.

    >>> as_float32(torch.tensor([0.5], dtype=torch.float16)).dtype
    torch.float32
    """
    check_dtype(x, name, SUPPORTED)
    return x.to(torch.float32)


def as_floats(x: Tensor, name: str = "x") -> Tensor:
    """As as_float32, but float64 stays: for values that are not coded.

    Raises:
        TypeError: if x is neither float64 nor of one of SUPPORTED.
    """
    check_dtype(x, name, (*SUPPORTED, torch.float64))
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def check_seed(seed: Tensor) -> None:
    """Refuse seeds that the noise is not defined for.

    Raises:
        TypeError: if they are not int32.
    """
    check_dtype(seed, "seed", (torch.int32,))
