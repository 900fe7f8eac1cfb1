"""What a report says first: one sentence per finding, its numbers read from the tables.

A finding compares rows of one table that belong together, as its text shows them; it
computes nothing but ratios of two of them. What was not measured makes no finding.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from pipeline_src.report.sections import Section

NOISE = "exceeds seed noise"
SAVED, PEAK = "saved [MiB]", "step peak [MiB]"
TIME = "time per epoch [s] (min … max)"
FULL_PRECISION = "FP32"
Row = dict[str, str]


def findings(sections: Sequence[Section]) -> list[str]:
    """Sentences on memory, time and accuracy, in this order.

    Args:
        sections: the tables of a run; those titled Training and Accuracy are read.
    """
    tables = {section.title: section for section in sections}
    found: list[str] = []
    if "Training" in tables:
        for place, rows in _places(tables["Training"]):
            found += _of_memory_and_time(place, rows)
    if "Accuracy" in tables:
        found += _of_accuracy(list(_rows(tables["Accuracy"])))
    return found


def _rows(section: Section) -> Iterator[Row]:
    for cells in section.rows:
        yield dict(zip(section.header, cells, strict=True))


def _places(section: Section) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one graph and model."""

    def place(row: Row) -> str:
        return f"{row['graph']} with {row['model']}"

    for name, rows in groupby(_rows(section), place):
        yield name, list(rows)


def _number(row: Row, column: str) -> float | None:
    """The first number of a cell; None where nothing was measured."""
    try:
        return float(row.get(column, "").partition(" ")[0])
    except ValueError:
        return None


def _of_memory_and_time(place: str, rows: list[Row]) -> Iterator[str]:
    """The method of least step peak against the first row, which is full precision."""
    first, *others = rows
    known = [row for row in others if _number(row, PEAK) is not None]
    if not known or _number(first, PEAK) is None:
        return
    best = min(known, key=lambda row: _number(row, PEAK) or 0.0)
    saved, peak = (_compared(best, first, column) for column in (SAVED, PEAK))
    if saved:
        yield (
            f"On {place}, {best['method']} keeps {best[SAVED]} MiB for backward, where "
            f"{first['method']} keeps {first[SAVED]}: {1 / saved:.0f} times less."
        )
    if peak:
        yield (
            f"Its step peaks at {best[PEAK]} MiB above model and data, {peak:.2f} of "
            f"{first['method']}'s {first[PEAK]}: the least of {len(known) + 1} methods."
        )
    if time := _compared(best, first, TIME):
        yield f"An epoch takes {time:.2f} of {first['method']}'s time."


def _compared(row: Row, other: Row, column: str) -> float | None:
    """Ratio of two cells of a column."""
    one, two = _number(row, column), _number(other, column)
    return one / two if one and two else None


def _of_accuracy(rows: list[Row]) -> Iterator[str]:
    compared = [row for row in rows if row[NOISE] in ("yes", "no")]
    if not compared:
        return
    beyond = [row for row in compared if row[NOISE] == "yes"]
    seeds = "/".join(dict.fromkeys(row["seeds"] for row in compared))
    text = (
        f"Test accuracy over {seeds} seeds, paired: {len(compared) - len(beyond)} of "
        f"{len(compared)} differences from {FULL_PRECISION} lie within seed noise"
    )
    if beyond:
        named = "; ".join(
            f"{row['method']} on {row['graph']} with {row['model']}, "
            f"{row['difference to FP32 [points]']} points"
            for row in beyond
        )
        text += f", beyond it {named}"
    yield text + "."
