"""Tables as text of at most 100 columns, and as HTML."""

import html as markup
from typing import NamedTuple

_LONGEST = 34  # letters of a name


class Table(NamedTuple):
    """A header and rows of cells; the first columns are names, the others numbers."""

    title: str
    rows: list[list[str]]
    names: int


def text(heading: str, tables: list[Table]) -> str:
    """All tables, aligned."""
    lines = [heading]
    for table in tables:
        lines += ["", *([f"{table.title}:", ""] if table.title else [])]
        lines += _aligned(table.rows, table.names)
    return "\n".join(lines)


def html(heading: str, tables: list[Table]) -> str:
    """All tables, for a notebook."""
    parts = [f"<h4>{markup.escape(heading)}</h4>"]
    return "\n".join([*parts, *map(_html_table, tables)])


def size(nbytes: float) -> str:
    """Bytes for a reader.

    >>> size(3 * 2**30), size(1.5 * 2**20), size(700), size(0)
    ('3.00 GiB', '1.50 MiB', '0.68 KiB', '0')
    """
    if nbytes == 0:
        return "0"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes / 2**10:.2f} KiB"


def short(name: str) -> str:
    """The end of a long name, where names of modules differ."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


def _aligned(table: list[list[str]], names: int) -> list[str]:
    """Lines of a table whose first columns are names, and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if index < names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _html_table(table: Table) -> str:
    head, *body = table.rows
    rows = ["<tr>" + "".join(f"<th>{markup.escape(c)}</th>" for c in head) + "</tr>"]
    for row in body:
        cells = "".join(
            f'<td style="text-align: {"left" if index < table.names else "right"}">'
            f"{markup.escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        rows.append(f"<tr>{cells}</tr>")
    caption = f"<caption>{markup.escape(table.title)}</caption>" if table.title else ""
    return f"<table>{caption}{''.join(rows)}</table>"
