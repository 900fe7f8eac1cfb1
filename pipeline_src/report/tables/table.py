"""A table, twice: plain numbers to compute with (CSV), and text to read (Markdown).

The unit is in every header of the numbers. Rows keep the order in which the
configuration names them. *Not measured* is NaN in the numbers and said in words.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline_src.report.markdown import row

NOT_MEASURED = "not measured"
NUMBER_MISSING = "NaN"  # the same in a CSV that programs read without being told

# Set to the left; all others are numbers and set to the right.
_TEXT_COLUMNS = {
    "operation",
    "implementation",
    "graph",
    "model",
    "hyper-parameters",
    "method",
    "strategy",
    "measured",
    "without",
    "setting",
    "within",
    "layer",
    "tensor",
    "projected",
    "exceeds seed noise",
}


@dataclass(frozen=True)
class Table:
    """One table, twice: numbers to compute with and text to read."""

    title: str
    note: str  # what the columns mean, one or two sentences
    values: pd.DataFrame
    shown: pd.DataFrame  # strings only
    missing: str = NOT_MEASURED  # what stands in the CSV for NaN


def to_markdown(table: Table) -> str:
    """Return the table as a Markdown page: title, note, and rows."""
    header = list(table.shown.columns)
    lines = [f"# {table.title}", "", table.note, ""]
    lines.append(f"| {' | '.join(header)} |")
    rules = ["---" if column in _TEXT_COLUMNS else "---:" for column in header]
    lines.append(f"| {' | '.join(rules)} |")
    lines += [row(cells) for cells in table.shown.itertuples(index=False)]
    if table.shown.empty:
        lines += ["", f"({NOT_MEASURED} in this configuration)"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return the numbers as CSV, six significant digits, missing ones said so."""
    return table.values.to_csv(
        index=False, float_format="%.6g", na_rep=table.missing, lineterminator="\n"
    )


def text_column(values: pd.Series, form: str, missing: str = NOT_MEASURED) -> pd.Series:
    """Return the values, each formatted as text; missing ones said in words."""
    return values.map(lambda value: missing if pd.isna(value) else form.format(value))


def interval_column(low: pd.Series, high: pd.Series) -> pd.Series:
    """Return both ends with their signs; nothing where there is no interval."""
    start = text_column(low, "{:+.2f}", missing="")
    return start + text_column(high, " … {:+.2f}", missing="")


def mebibytes(value: float) -> str:
    """Return two decimals, as published; of less than 10 MiB, four digits."""
    if np.isnan(value):
        return NOT_MEASURED
    return f"{value:.2f}" if value >= 10 or value == 0 else f"{value:#.4g}"


def three_digits(value: float) -> str:
    """Return a positive number with three digits, never as a power of 10."""
    if not np.isfinite(value):
        return NOT_MEASURED
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
