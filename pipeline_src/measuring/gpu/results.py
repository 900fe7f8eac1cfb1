"""Small files that a run on a device leaves behind: rows as they are measured.

A row is written and shown when it is there, so that a part that is stopped at its limit
keeps what it has measured. Only the standard library is needed to write and read them.
"""

import csv
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOTES = "notes.csv"
NOT_MEASURED = ""


class Rows:
    """A CSV file with a header, written row by row."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Begin the file anew."""
        self.path = path
        self.columns = tuple(columns)
        self._start = time.monotonic()
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self.columns)

    def add(self, values: Mapping[str, Any]) -> None:
        """Write a row and show it; a column that is left out was not measured.

        Raises:
            ValueError: if there is no such column.
        """
        if unknown := sorted(set(values) - set(self.columns)):
            raise ValueError(f"{self.path.name} has no column {unknown}")
        row = [_text(values.get(name, NOT_MEASURED)) for name in self.columns]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
        shown = " ".join(
            f"{name}={text}"
            for name, text in zip(self.columns, row, strict=True)
            if text != NOT_MEASURED
        )
        seconds = time.monotonic() - self._start
        print(f"  [{seconds:5.1f} s] {self.path.stem}: {shown}", flush=True)


def note(folder: Path, part: str, text: str) -> None:
    """Keep and show what a reader of the results must know."""
    path = folder / NOTES
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["part", "note"])
        writer.writerow([part, text])
    print(f"  NOTE {part}: {text}", file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of one sample, itself.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, median, third


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
