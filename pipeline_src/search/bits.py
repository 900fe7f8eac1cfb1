"""Automatic bit selection: the least memory for an accuracy, or the reverse.

The search knows nothing of networks. It is told which variables there are and what they
cost (space.py), and asks for the accuracy of configurations, in rounds. Ask and
tell are apart, so that a round can be measured elsewhere, by as many jobs as it has
configurations:

    search = Search(settings, path)
    while search.num_measured < budget:
        for configuration in search.propose():       # one round, measured anywhere
            search.record(configuration, accuracy)   # in any order
    result = search.result()

``search_bits`` is that loop in one process. Both give the same archive.

What is proposed depends on the settings and on measured accuracies of earlier rounds
alone. So the same seed gives the same archive, a killed search continues as if nothing
had happened, and a longer search begins like a shorter one. Nothing is measured twice
(see result.py for what that means for noise).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_src.records.datasets import FilePath, write_dataset
from pipeline_src.search.archive import (
    History,
    SearchSettings,
    empty_history,
    read_history,
    require_share,
    to_archive,
)
from pipeline_src.search.result import SearchResult
from pipeline_src.search.space import Choices, Configuration, SearchSpace
from pipeline_src.search.strategies import (
    propose_greedy,
    propose_random,
    propose_surrogate,
    propose_uniform,
)

LOG = logging.getLogger(__name__)

STRATEGIES = {
    "surrogate": propose_surrogate,
    "greedy": propose_greedy,
    "random": propose_random,
    "uniform": propose_uniform,
}


class Search:
    """A search that is told what it asked for.

    Args:
        settings: the space, the aim and the seed.
        path: where the archive is kept, rewritten after each proposal and measurement;
            a file that is there is continued. None keeps it in memory only.

    Raises:
        ValueError: if the strategy is unknown, or the file is of another search.
    """

    def __init__(self, settings: SearchSettings, path: FilePath | None = None) -> None:
        if settings.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy must be one of {list(STRATEGIES)}, got {settings.strategy!r}"
            )
        self.settings = settings
        self._path = path
        if path is not None and Path(path).exists():
            self._history = read_history(settings, path)
        else:
            self._history = empty_history(settings.space)

    @property
    def num_measured(self) -> int:
        """Number of measured configurations."""
        return int(np.isfinite(self._history.accuracy).sum())

    def propose(self) -> list[Configuration]:
        """Name what is to be measured next; nothing when the strategy is at its end.

        A round is proposed until all of it is recorded, so asking twice does no harm.
        """
        if not self._waiting().any():
            self._start_round()
        rows = self._history.choices[self._waiting()]
        return [self.settings.space.configuration(row) for row in rows]

    def record(self, configuration: Configuration, accuracy: float) -> None:
        """Tell the validation accuracy (a share) of a proposed configuration.

        Raises:
            ValueError: if it was not proposed, is known already, or is no share.
        """
        require_share("accuracy", accuracy)
        choices = self.settings.space.choices(configuration)
        same = (self._history.choices == choices).all(axis=1)
        rows = np.flatnonzero(same & self._waiting())
        if not len(rows):
            state = "is measured already" if same.any() else "was not proposed"
            raise ValueError(
                f"record takes what propose() returned, but {dict(configuration)}"
                f" {state}"
            )
        measured = self._history.accuracy.copy()
        measured[rows[0]] = accuracy
        self._replace(replace(self._history, accuracy=measured))

    def result(self) -> SearchResult:
        """What is known so far."""
        archive = to_archive(self.settings, self._history)
        return SearchResult(archive.isel(evaluation=~self._waiting()))

    def _start_round(self) -> None:
        history, settings = self._history, self.settings
        rng = np.random.default_rng([settings.seed, len(history.accuracy)])
        proposed: list[Choices] = STRATEGIES[settings.strategy](settings, history, rng)
        if not proposed:
            return
        choices = np.array(proposed, int)
        number = history.round_number.max(initial=0) + 1
        waiting = np.full(len(choices), np.nan)
        memory = settings.space.memory_of(choices)
        self._replace(
            History(
                np.concatenate([history.choices, choices]),
                np.append(history.round_number, np.full(len(choices), number)),
                np.append(history.accuracy, waiting),
                np.append(history.memory, memory),
            )
        )

    def _waiting(self) -> np.ndarray:
        return np.isnan(self._history.accuracy)

    def _replace(self, history: History) -> None:
        """Write first: what a reader of the file sees is never ahead of it."""
        if self._path is not None:
            write_dataset(to_archive(self.settings, history), self._path)
        self._history = history


def search_bits(
    space: SearchSpace,
    evaluate: Callable[[Configuration], float],
    budget: int,
    *,
    baseline: float,
    seed: int,
    max_drop: float | None = None,
    max_memory: float | None = None,
    strategy: str = "surrogate",
    round_size: int = 8,
    path: FilePath | None = None,
) -> SearchResult:
    """Search in this process.

    Args:
        space: variables, their values, their memory.
        evaluate: configuration -> validation accuracy, a share.
        budget: measurements in all, those of a continued archive included.
        baseline: accuracy to compare with, a share.
        seed: of all random choices.
        max_drop: the accuracy that may be lost; look for the least memory. Or:
        max_memory: the bytes that may be used; look for the greatest accuracy.
        strategy: a name of STRATEGIES.
        round_size: configurations proposed at a time.
        path: see Search.

    Returns:
        The measured evaluations; fewer than budget where the strategy ends before.

    >>> from pipeline_src.search.space import Variable
    >>> space = SearchSpace((Variable("x", (2, 8), 100), Variable("h", (2, 8), 10)))
    >>> found = search_bits(
    ...     space,
    ...     lambda bits: 0.8 if bits["h"] == 8 else 0.7,
    ...     budget=4,
    ...     baseline=0.8,
    ...     max_drop=0.01,
    ...     seed=0,
    ... )
    >>> found.best.configuration, found.best.memory
    ({'x': 2, 'h': 8}, 35.0)
    """
    settings = SearchSettings(
        space, baseline, seed, max_drop, max_memory, strategy, round_size
    )
    search = Search(settings, path)
    while left := max(budget - search.num_measured, 0):
        proposed = search.propose()[:left]
        if not proposed:
            break
        for configuration in proposed:
            search.record(configuration, evaluate(configuration))
        best = search.result().best
        LOG.info(
            "%d of %d measured; %s",
            search.num_measured,
            budget,
            "nothing meets the aim yet"
            if best is None
            else f"best: {best.memory:g} bytes at accuracy {best.accuracy:.4f}",
        )
    return search.result()
