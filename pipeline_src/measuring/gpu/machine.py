"""What a machine offers to `make gpu`, and what lacks for which part."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

OLDEST_TORCH = (2, 11)
# module -> what goes without it
USED_FOR = {
    "numpy": "every part",
    "scipy": "graphs, so aggregation, training and the large graph",
    "triton": "compiled kernels on a GPU; plain ones are measured",
    "torch_geometric": "the method pyg-eager and some of the tests",
    "pytest": "the tests",
    "hypothesis": "the tests",
    "torchao": "a rival of the kernels",
    "bitsandbytes": "a rival of the kernels",
    "netCDF4": "nothing here: results are CSV and JSON",
    "xarray": "nothing here: results are CSV and JSON, but for some of the tests",
}
C_COMPILER = "a C compiler"


def describe_machine(wish: str) -> dict[str, Any]:
    """Device, versions, and what lacks; as plain values.

    Args:
        wish: "cuda" or "cpu".

    Returns:
        `obstacle` says why nothing can be measured, or is empty.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    lacking = {name: use for name, use in USED_FOR.items() if not _is_here(name)}
    if compiler is None:
        lacking[C_COMPILER] = USED_FOR["triton"]
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "cpu_only": wish == "cpu",
        "obstacle": obstacle(wish),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in USED_FOR if name not in lacking},
        "lacking": lacking,
        "compiles": compiler is not None and (wish == "cpu" or "triton" not in lacking),
    }
    if wish == "cuda" and not found["obstacle"]:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mib": properties.total_memory // 2**20,
            "cache_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
            "uuid": str(getattr(properties, "uuid", "")),
        }
    return found


def obstacle(wish: str) -> str:
    """Why nothing can be measured on a device; empty if it can."""
    numbers = torch.__version__.split("+")[0].split(".")[:2]
    if tuple(map(int, numbers)) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"torch {oldest} or newer is needed, got {torch.__version__}"
    if wish == "cuda" and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) finds no "
            "CUDA device; to rehearse without one: make gpu DEVICE=cpu"
        )
    return ""


def _is_here(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # an installation that is broken, or forbidden
        return False


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a module that no distribution of that name holds
        return "unknown"
