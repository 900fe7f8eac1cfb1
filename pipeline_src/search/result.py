"""What a search found: answers to queries, the Pareto front, the curve of the search.

Every configuration is measured once, and the answers go by that measurement. Choosing
the cheapest of many noisy measurements favours lucky ones (the winner's curse), so let
`evaluate` average as many seeds as max_drop asks for, search on validation accuracy
only, and measure the chosen configuration anew with other seeds before reporting it.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.records.datasets import attributes
from pipeline_src.search.archive import SAME_ACCURACY
from pipeline_src.search.space import Value


@dataclass(frozen=True)
class Found:
    """One measured configuration."""

    configuration: dict[str, Value]
    accuracy: float  # share
    memory: float  # bytes
    average_bits: float


@dataclass(frozen=True)
class SearchResult:
    """A finished search, or one under way."""

    archive: xr.Dataset  # measured evaluations only, see archive.to_archive

    @property
    def best(self) -> Found | None:
        """The best by the aim of the search; None if nothing measured meets it."""
        if self._settings["max_memory"] is not None:
            return self.best_within_memory(self._settings["max_memory"])
        return self.best_within_drop(self._settings["max_drop"])

    def best_within_drop(self, max_drop: float) -> Found | None:
        """Least memory among those at most max_drop (a share) below the baseline."""
        return self._found(self._running_best(*self._by_memory(max_drop))[-1:])

    def best_within_memory(self, max_memory: float) -> Found | None:
        """Greatest accuracy among those of at most max_memory bytes."""
        return self._found(self._running_best(*self._by_accuracy(max_memory))[-1:])

    @property
    def front(self) -> xr.Dataset:
        """The Pareto front, in the order of memory; equals stand side by side.

        An evaluation is on it if no other is as good in memory and in accuracy, and
        better in one of them.
        """
        order = np.lexsort((-self._accuracy, self._memory))
        memory, accuracy = self._memory[order], self._accuracy[order]
        as_good = (memory <= memory[:, None]) & (accuracy >= accuracy[:, None])
        better = (memory < memory[:, None]) | (accuracy > accuracy[:, None])
        return self.archive.isel(evaluation=order[~(as_good & better).any(axis=1)])

    @property
    def curve(self) -> xr.Dataset:
        """The best by the aim of the search after each evaluation; NaN before any."""
        if self._settings["max_memory"] is not None:
            ranked = self._by_accuracy(self._settings["max_memory"])
        else:
            ranked = self._by_memory(self._settings["max_drop"])
        rows = self._running_best(*ranked)
        variables = {}
        for name in ("memory", "average_bits", "accuracy"):
            values = np.append(self.archive[name].values, np.nan)[rows]
            meaning = f"{name.replace('_', ' ')} of the best so far"
            units = self.archive[name].attrs["units"]
            variables[f"best_{name}"] = (
                "evaluation",
                values,
                attributes(units, meaning),
            )
        number = self.archive["evaluation"].variable
        return xr.Dataset(variables, {"evaluation": number}, self.archive.attrs)

    @property
    def _settings(self) -> dict[str, Any]:
        return json.loads(self.archive.attrs["settings"])

    @property
    def _accuracy(self) -> np.ndarray:
        return self.archive["accuracy"].values

    @property
    def _memory(self) -> np.ndarray:
        return self.archive["memory"].values

    def _by_memory(self, max_drop: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows, the best first, and which rows are allowed."""
        least = self._settings["baseline"] - max_drop - SAME_ACCURACY
        order = np.lexsort((-self._accuracy, self._memory))
        return order, self._accuracy >= least

    def _by_accuracy(self, max_memory: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows, the best first, and which rows are allowed."""
        order = np.lexsort((self._memory, -self._accuracy))
        return order, self._memory <= max_memory

    def _running_best(self, order: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Row of the best allowed evaluation up to each; one past the end if none."""
        num_rows = len(order)
        rank = np.empty(num_rows, int)
        rank[order] = np.arange(num_rows)
        best_rank = np.minimum.accumulate(np.where(allowed, rank, num_rows))
        return np.append(order, num_rows)[best_rank]

    def _found(self, rows: np.ndarray) -> Found | None:
        """The evaluation of a row, given as an array of none or one."""
        if not len(rows) or rows[0] == self.archive.sizes["evaluation"]:
            return None
        row = self.archive.isel(evaluation=int(rows[0]))
        return Found(
            json.loads(str(row["configuration"].values)),
            float(row["accuracy"]),
            float(row["memory"]),
            float(row["average_bits"]),
        )
