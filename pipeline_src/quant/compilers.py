"""Whether this machine can compile kernels for its CPU; asking imports no torch.

The workflow asks before any job starts, each job asks for itself.
"""

import functools
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
import threading
from typing import Any

COMPILE_CHOICES = ("auto", "true", "false")
_COST = (
    "so kernels run plain: the results are the same, but time and step peak are not "
    "those of the fused kernels."
)


def plain_kernels_warning(compile: str) -> str | None:
    """Why kernels will run plain on a CPU, and what that costs; None if they will not.

    Raises:
        ValueError: if compile is not one of COMPILE_CHOICES.
    """
    if compile not in COMPILE_CHOICES:
        raise ValueError(f"compile must be one of {COMPILE_CHOICES}, got {compile!r}")
    if compile == "false":
        return f"compile: false is set, {_COST}"
    # The compiler that Inductor will call.
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is None:
        return (
            f"No C++ compiler was found ({compiler}), {_COST} "
            "Install g++ (or set CXX) to compile them."
        )
    for variable, folder in _folders_in_commands():
        if shlex.quote(folder) != folder:
            return (
                f"torch gives {folder!r} to the compiler unquoted, which cannot work, "
                f"{_COST} Set {variable} to a folder without blanks and quotes."
            )
    return None


def probe_ahead() -> None:
    """Let Inductor find out, beside other work, which instructions its CPU has.

    Before its first module it compiles and loads a few programs for that: with a cold
    cache ten seconds, in which this process would only wait for others.
    """
    # All that the thread will import: two threads importing at once get in their way.
    from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401

    threading.Thread(target=cpu_vec_isa.valid_vec_isa_list, daemon=True).start()


def fill_tables_once() -> None:
    """Keep Inductor from filling its table of types anew for every operation.

    The table is a singleton, but each use of it calls `__init__` all the same, a
    quarter of what a large kernel takes to compile. Rules that are added fill it
    again. Where torch has no such table, nothing is done.
    """
    try:
        from torch._inductor.codegen.common import pointwise_overrides_data
        from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
        from torch._inductor.utils import op_dtype_propagation_rules
    except ImportError:
        return
    fill = DtypePropagationOpsHandler.__init__
    if getattr(fill, "filled", None):
        return
    rules: tuple[dict[str, Any], ...] = (
        op_dtype_propagation_rules,
        pointwise_overrides_data,
    )
    filled: dict[str, tuple[int, ...]] = {"rules": ()}

    @functools.wraps(fill)
    def once(self: Any) -> None:
        if (now := tuple(len(one) for one in rules)) != filled["rules"]:
            fill(self)
            filled["rules"] = now

    once.filled = filled  # type: ignore[attr-defined]
    setattr(DtypePropagationOpsHandler, "__init__", once)  # noqa: B010


def _folders_in_commands() -> list[tuple[str, str]]:
    """Where torch keeps kernels and its own library, and what decides it."""
    torch = importlib.util.find_spec("torch")
    library = os.path.dirname(torch.origin) if torch and torch.origin else ""
    kernels = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    return [("TORCHINDUCTOR_CACHE_DIR", kernels), ("VENV (of make)", library or "/")]
