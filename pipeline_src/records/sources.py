"""Which files of the library a script depends on, found by reading its imports.

Snakemake notices an edited script, but not an edited library. A rule therefore lists
the library files behind its script as inputs, and then an edit re-runs exactly the
rules that depend on it. Imports are read, not executed: start-up stays short.
"""

import ast
from functools import cache
from pathlib import Path

PACKAGE = "pipeline_src"


def imported_sources(script: str | Path, root: str | Path) -> list[Path]:
    """The library's files that `script` imports, directly or through each other.

    Args:
        script: a Python file.
        root: the folder that holds the library's own folder.

    Returns:
        Paths below `root`, sorted; imports inside functions count as well.
    """
    root = Path(root)
    found: set[Path] = set()
    to_read = [Path(script)]
    while to_read:
        for path in _imports(to_read.pop(), root):
            if path not in found:
                found.add(path)
                to_read.append(path)
    return sorted(found)


@cache
def _imports(path: Path, root: Path) -> tuple[Path, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files = (_file(name, root) for name in names if name.split(".")[0] == PACKAGE)
    return tuple(file for file in files if file is not None)


def _file(name: str, root: Path) -> Path | None:
    """The module's file; None for a package, whose `__init__` holds no code."""
    file = root.joinpath(*name.split(".")).with_suffix(".py")
    return file if file.is_file() else None
