r"""Rows of Markdown tables: text as it stands, and back.

Text from a configuration may hold any character. What Markdown, or GitHub's reading of
it, would take for a sign of its own gets a backslash; a page shows the text as it was
written. Signs that mean nothing where they stand, as a bar within a word, stay bare.

    >>> row(["costs $5 | <b>", "a_b"])
    '| costs \\$5 \\| \\<b> | a_b |'
    >>> cells(row(["costs $5 | <b>", "a_b"]))
    ['costs $5 | <b>', 'a_b']
"""

import re
from collections.abc import Iterable

# Bars, code, emphasis, mathematics, strikes; tags, entities and links where they begin.
_SIGNS = re.compile(
    r"[\\|`*$~]"
    r"|(?<![^\W_])_|_(?![^\W_])"
    r"|<(?=[A-Za-z/!?])"
    r"|&(?=#?\w+;)"
    r"|(?<=\])\("
)
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_CELL = re.compile(r"((?:\\.|[^\\|])*)\|")


def row(texts: Iterable[object]) -> str:
    """One row of a table whose cells show these texts as they stand."""
    shown = (_SIGNS.sub(r"\\\g<0>", str(text)) for text in texts)
    return "| " + " | ".join(shown) + " |"


def cells(line: str) -> list[str]:
    """The texts that a row shows."""
    return [as_shown(cell.strip()) for cell in _CELL.findall(line.strip()[1:])]


def as_shown(page: str) -> str:
    """A page of tables as plain text, for terminals."""
    return _ESCAPED.sub(r"\1", page)
