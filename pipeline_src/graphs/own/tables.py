"""A folder of CSV tables: edges, features, labels and, if there is one, a split.

Each table has one line of names and then one line for each edge or node. Without a
column `node` the lines of features.csv are the nodes 0, 1, 2 and so on, and those of
the other tables follow them. With it, nodes have names of any kind: features.csv says
which there are, and the other tables use them, in any order.
"""

import csv
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline_src.graphs.own.arrays import EDGES, FEATURES, LABELS, MASKS, Arrays
from pipeline_src.graphs.own.given import (
    EDGE_TABLE,
    FEATURE_TABLE,
    LABEL_TABLE,
    SPLIT_TABLE,
)

NODE, LABEL, SPLIT, ENDS = "node", "label", "split", ("source", "target")
WORDS = ("train", "val", "test")
NO_SPLIT = "none"  # a word, because an empty line is more often a slip
FIRST_LINE = 2  # of values, below the names


def read_tables(folder: str | Path) -> Arrays:
    """Arrays of the tables in a folder.

    Columns of edges.csv beside source and target become empty arrays, named with
    `edge_` before them, so that what is not read is known.

    Raises:
        ValueError: naming the table and, where a line is at fault, the line.
        OSError: if a table cannot be opened.
    """
    folder = Path(folder)
    features = _table(folder / FEATURE_TABLE, lambda _: float)
    names = [name for name in features if name != NODE]
    if strangers := {LABEL, SPLIT} & set(names):
        raise ValueError(
            f"{FEATURE_TABLE}: expected features alone, got a column "
            f"{', '.join(sorted(strangers))}, from which a network would read its "
            "answers; it belongs to a table of its own"
        )
    nodes = _Nodes(features)
    edges = _table(folder / EDGE_TABLE, nodes.kind_of_end, ENDS)
    labels = _table(folder / LABEL_TABLE, lambda _: int, [LABEL], more=False)
    labels = nodes.in_order(LABEL_TABLE, labels)
    ends = [nodes.numbers(EDGE_TABLE, edges[end]) for end in ENDS]
    return {
        FEATURES: features[names].to_numpy(np.float64),
        LABELS: labels[LABEL].to_numpy(np.int64),
        EDGES: np.stack(ends),
        **{f"edge_{name}": np.empty(0) for name in edges if name not in ENDS},
        **dict(_masks(folder / SPLIT_TABLE, nodes)),
    }


class _Nodes:
    """The nodes of features.csv, numbered by its lines, by name if they have names."""

    def __init__(self, features: pd.DataFrame) -> None:
        self.count = len(features)
        self.names = pd.Index(features[NODE]) if NODE in features else None
        if self.names is not None and (twice := self.names.duplicated()).any():
            line = int(twice.argmax())
            raise ValueError(
                f"{FEATURE_TABLE}: expected each node once, got {self.names[line]!r} "
                f"again in line {line + FIRST_LINE}"
            )

    def kind_of_end(self, column: str) -> type:
        """What a column of edges.csv holds: numbers of nodes, names, or anything."""
        return int if column in ENDS and self.names is None else str

    def numbers(self, table: str, column: "pd.Series[int]") -> np.ndarray:
        """(num_lines,) int64, the nodes that a column means."""
        if self.names is None:
            return column.to_numpy(np.int64)
        number = self.names.get_indexer(pd.Index(column)).astype(np.int64)
        if (number < 0).any():
            line = int((number < 0).argmax())
            raise ValueError(
                f"{table}: expected nodes of {FEATURE_TABLE}, got "
                f"{column.iloc[line]!r} in line {line + FIRST_LINE}"
            )
        return number

    def in_order(self, table: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with one line for each node, in the order of features.csv."""
        if (NODE in frame) != (self.names is not None):
            raise ValueError(
                f"{table} and {FEATURE_TABLE}: expected a column {NODE} in both or in "
                "neither, got it in one of them"
            )
        if len(frame) != self.count:
            raise ValueError(
                f"{table}: expected {self.count} lines below the names, one for each "
                f"node of {FEATURE_TABLE}, got {len(frame)}"
            )
        if self.names is None:
            return frame
        number = self.numbers(table, frame[NODE])
        order = np.argsort(number, kind="stable")
        if (twice := np.flatnonzero(np.diff(number[order]) == 0)).size:
            line = int(order[twice[0] + 1])
            raise ValueError(
                f"{table}: expected each node once, got {frame[NODE].iloc[line]!r} "
                f"again in line {line + FIRST_LINE}"
            )
        return frame.iloc[order]


def _masks(path: Path, nodes: _Nodes) -> Iterator[tuple[str, np.ndarray]]:
    if not path.exists():
        return
    frame = _table(path, lambda _: str, [SPLIT], more=False)
    words = frame[SPLIT].to_numpy(object)
    known = np.isin(words, [*WORDS, NO_SPLIT])
    if not known.all():
        line = int((~known).argmax())
        raise ValueError(
            f"{path.name}: expected one of {', '.join(WORDS)} or {NO_SPLIT}, got "
            f"{words[line]!r} in line {line + FIRST_LINE}"
        )
    words = nodes.in_order(path.name, frame)[SPLIT].to_numpy(object)
    for name, word in zip(MASKS, WORDS, strict=True):
        yield name, words == word


def _table(
    path: Path,
    kind_of: Callable[[str], type],
    wanted: Sequence[str] = (),
    *,
    more: bool = True,  # whether there may be others
) -> pd.DataFrame:
    """The table, its columns of the kinds asked for, and text where it names nodes."""
    names = _names(path)
    others = set(names) - {NODE} - set(wanted)
    if not set(wanted) <= set(names) or (others and not more):
        raise ValueError(
            f"{path.name}: expected the names {','.join(wanted)} in the first line, "
            f"got {','.join(names)[:80]!r}"
        )
    kinds = {name: str if name == NODE else kind_of(name) for name in names}
    try:
        frame = _read(path, kinds)
    except (ValueError, OverflowError, pd.errors.ParserWarning) as error:
        _refuse_cells(path, kinds)
        raise ValueError(f"{path.name}: {error}") from error
    for name, kind in kinds.items():
        if kind is int and len(frame) and frame[name].dtype != np.int64:
            _refuse_cells(path, kinds)
            raise ValueError(
                f"{path.name}: expected whole numbers that int64 can hold in column "
                f"{name!r}, got {frame[name].dtype}"
            )
    return frame


def _read(path: Path, kinds: dict[str, type]) -> pd.DataFrame:
    # Whole numbers have no dtype here: with one, pandas would take 2.0 for 2.
    dtypes = {name: kind for name, kind in kinds.items() if kind is not int}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # too many values
        return pd.read_csv(
            path,
            dtype=dtypes,
            encoding="utf-8-sig",  # with or without a byte order mark
            index_col=False,
            na_filter=False,
            skip_blank_lines=False,
            low_memory=False,
        )


def _names(path: Path) -> list[str]:
    """The first line of a table."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            names = next(csv.reader(file), [])
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path.name}: expected UTF-8 text, got {error}"
            ) from error
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError(
            f"{path.name}: expected a first line with a name of its own for each "
            f"column, got {','.join(names)[:80]!r}"
        )
    return names


def _refuse_cells(path: Path, kinds: dict[str, type]) -> None:
    """Name the first value that is not of its column's kind, if there is one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        next(lines)
        for line in lines:
            if len(line) != len(kinds):
                raise ValueError(
                    f"{path.name}: expected {len(kinds)} values in each line, as many "
                    f"as names, got {len(line)} in line {lines.line_num}"
                )
            for (name, kind), value in zip(kinds.items(), line, strict=True):
                if not _is_of_kind(value, kind):
                    words = "whole" if kind is int else "finite"
                    raise ValueError(
                        f"{path.name}: expected {words} numbers in column {name!r}, "
                        f"got {value[:40]!r} in line {lines.line_num}"
                    )


def _is_of_kind(value: str, kind: type) -> bool:
    try:
        return kind is str or math.isfinite(kind(value))
    except (ValueError, OverflowError):
        return False
