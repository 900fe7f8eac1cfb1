"""Tables on Markdown pages, taken apart again.

The Markdown of a table is the only place where its text is made; pages and findings
read it.
"""

from dataclasses import dataclass

from pipeline_src.report.markdown import cells


@dataclass(frozen=True)
class Section:
    """One table of a Markdown page: title, note and cells as text."""

    title: str
    note: str
    header: list[str]
    is_number: list[bool]  # per column
    rows: list[list[str]]


def read_markdown(page: str) -> Section:
    """Take a Markdown page with one table apart.

    Raises:
        ValueError: if the page holds no table.
    """
    lines = page.splitlines()
    table = [cells(line) for line in lines if line.startswith("|")]
    if len(table) < 2:
        raise ValueError(f"expected a Markdown page with a table, got {page[:80]!r}")
    prose = [line for line in lines if line and not line.startswith("|")]
    return Section(
        title=prose[0].removeprefix("# "),
        note=" ".join(prose[1:]),
        header=table[0],
        is_number=[cell.endswith(":") for cell in table[1]],
        rows=table[2:],
    )
