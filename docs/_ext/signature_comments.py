"""Shapes and units, which our signatures keep in trailing comments, as documentation.

    def pack_mask(
        mask: Tensor,  # bool, any shape

reads as a parameter `mask` that is described by `bool, any shape`.
"""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

_PARAMETER = re.compile(r"^\s+(\w+): [^#\n]*?(?:  # (.+))?$")
_COMMENT = re.compile(r"^\s+# (.+)$")


def comments_of(source: str) -> dict[str, str]:
    """Name of a parameter or field to the comment above and behind it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        if match := _COMMENT.match(line):
            above.append(match[1])
        elif match := _PARAMETER.match(line):
            if text := " ".join([*above, match[2] or ""]).strip():
                found.setdefault(match[1], text)
            above = []
        else:
            above = []
            if line.lstrip().startswith(("def __", "@property", ") ->", "return ")):
                break
    return found


def add_comments(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Add a field for each parameter that the docstring leaves out."""
    if what not in ("function", "class", "method"):
        return
    try:
        source = inspect.getsource(thing)
        parameters = inspect.signature(thing).parameters
    except (OSError, TypeError, ValueError):
        return
    documented = set(re.findall(r":param (\w+):", "\n".join(lines)))
    fields = [
        f":param {parameter}: {comment}"
        for parameter, comment in comments_of(source).items()
        if parameter in parameters and parameter not in documented
    ]
    if fields:
        lines += ["", *fields, ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Run after napoleon, which turns sections into fields."""
    app.connect("autodoc-process-docstring", add_comments, priority=900)
    return {"parallel_read_safe": True}
