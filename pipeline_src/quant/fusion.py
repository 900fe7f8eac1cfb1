"""When to run a kernel compiled, and when plain.

Each kernel of this package is a plain function and its twin under `torch.compile`.
Both give the same bits on one device, so the choice never changes a result, only its
cost: a compiled kernel reads its input once or twice where the plain one makes dozens
of passes and as many temporaries, but the first call takes seconds to compile.

Kernels are compiled with `fullgraph=True`, so a graph break is an error, and with
`dynamic=True`, so one compilation serves all sizes.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from pipeline_src.quant.compilers import plain_kernels_warning

# Below this many values the plain version ends before a compilation would start.
MIN_NUMEL_ON_CPU = 2**20


def fuse(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled twin of a plain kernel; the compiler is loaded at its first call."""
    twin: Callable[..., Any] | None = None

    @functools.wraps(plain)
    def fused(*arguments: Any) -> Any:
        nonlocal twin
        if twin is None:
            from torch._dynamo import config

            # One entry per width, packet and law; a size adds none.
            config.recompile_limit = max(config.recompile_limit, 64)
            twin = torch.compile(plain, fullgraph=True, dynamic=True)
        return twin(*arguments)

    return fused


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
