"""Which torch and Triton the proof was written for."""

import importlib.metadata
import importlib.util

PINS = {"torch": "2.13.0", "triton": "3.7.1"}


def obstacle() -> str:
    """Why the proof cannot run here; empty if it can."""
    for name, wanted in PINS.items():
        if not _is_installed(name):
            return f"the GPU proof needs {name}=={wanted}: make gpu-proof installs it"
        found = importlib.metadata.version(name).partition("+")[0]
        if found != wanted:
            return (
                f"the GPU proof reads internals of {name} {wanted}, but {found} is "
                "installed: make gpu-proof installs what it needs"
            )
    return ""


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
