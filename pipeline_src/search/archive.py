"""The archive of a search: which configurations were proposed, and what came out.

One row per evaluation, in the order of *proposal*, so that the order in which jobs of
a round come back changes nothing. A row that waits for its measurement has a NaN as
accuracy. The file states the search it belongs to and is refused by any other. It does
not state a budget: a longer search continues a shorter one.

Accuracies are shares (0.815, not 81.5) of the validation nodes; memory is in bytes.
"""

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.records.datasets import (
    FilePath,
    attributes,
    read_dataset,
    text_coord,
)
from pipeline_src.search.space import SearchSpace

# Far below the share of one node in any graph, far above rounding of a difference.
SAME_ACCURACY = 1e-9


@dataclass(frozen=True)
class SearchSettings:
    """What makes two searches the same, given the measured accuracies.

    Exactly one of max_drop and max_memory is the aim.

    Args:
        space: the configurations.
        baseline: accuracy to compare with, a share.
        seed: of all random choices.
        max_drop: the accuracy that may be lost; look for the least memory.
        max_memory: the bytes that may be used; look for the greatest accuracy.
        strategy: a name of bits.STRATEGIES.
        round_size: configurations proposed at a time; more suits parallel jobs,
            fewer learn faster.
    """

    space: SearchSpace
    baseline: float
    seed: int
    max_drop: float | None = None
    max_memory: float | None = None
    strategy: str = "surrogate"
    round_size: int = 8

    def __post_init__(self) -> None:
        require_share("baseline", self.baseline)
        if (self.max_drop is None) == (self.max_memory is None):
            raise ValueError(
                "a search must have one of max_drop and max_memory as its aim, got"
                f" max_drop={self.max_drop} and max_memory={self.max_memory}"
            )
        if self.max_drop is not None:
            require_share("max_drop", self.max_drop)
        if self.max_memory is not None and not self.max_memory > 0:
            raise ValueError(f"max_memory must be above 0 bytes, got {self.max_memory}")
        if self.round_size < 1:
            raise ValueError(f"round_size must be 1 or more, got {self.round_size}")

    def to_json(self) -> str:
        """State the search, one entry per field."""
        entries = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "space"
        }
        return json.dumps(entries | {"space": json.loads(self.space.to_json())})


@dataclass(frozen=True)
class History:
    """Proposed configurations, in the order of proposal.

    Rows are unique. Unmeasured ones exist only in the round that is under way.
    """

    choices: np.ndarray  # (num_rows, num_variables) int, see space.py
    round_number: np.ndarray  # (num_rows,) int, from 1
    accuracy: np.ndarray  # (num_rows,) share, NaN while not measured
    memory: np.ndarray  # (num_rows,) bytes


def empty_history(space: SearchSpace) -> History:
    """Nothing proposed yet."""
    none = np.zeros((0, len(space.variables)), int)
    return History(none, np.zeros(0, int), np.zeros(0), np.zeros(0))


def to_archive(settings: SearchSettings, history: History) -> xr.Dataset:
    """Describe a history as a dataset, dims (evaluation, variable)."""
    space = settings.space
    num_rows = len(history.accuracy)

    def along(values: np.ndarray, units: str, long_name: str) -> tuple[Any, ...]:
        return "evaluation", values, attributes(units, long_name)

    configurations = [json.dumps(space.configuration(row)) for row in history.choices]
    names = [variable.name for variable in space.variables]
    bits = space.average_bits(history.memory)
    return xr.Dataset(
        {
            "accuracy": along(history.accuracy, "1", "validation accuracy"),
            "memory": along(history.memory, "byte", "memory of the configuration"),
            "average_bits": along(bits, "bit", "memory per element"),
            "choice": (
                ("evaluation", "variable"),
                history.choices,
                attributes("1", "index of the value, 0 for the most compressed"),
            ),
        },
        {
            "evaluation": along(np.arange(1, num_rows + 1), "1", "evaluation"),
            "round": along(history.round_number, "1", "round of proposals"),
            "configuration": text_coord(
                "evaluation", configurations, "configuration as JSON"
            ),
            "variable": text_coord("variable", names, "variable"),
        },
        {"settings": settings.to_json()},
    )


def read_history(settings: SearchSettings, path: FilePath) -> History:
    """Read back what to_archive described.

    Raises:
        ValueError: if the archive is of another search.
    """
    archive = read_dataset(path)
    found = json.loads(archive.attrs["settings"])
    wanted = json.loads(settings.to_json())
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} is the archive of another search: its {name} is"
            f" {found.get(name)}, but {wanted[name]} is asked for; choose another"
            " path, or delete the file to start anew"
        )
    choices = archive["choice"].values.astype(int)
    memory = archive["memory"].values
    computed = settings.space.memory_of(choices)
    if not np.array_equal(computed, memory):
        row = int(np.flatnonzero(computed != memory)[0])
        raise ValueError(
            f"{path} is the archive of another search: it counts {memory[row]:g} bytes"
            f" for {archive['configuration'].values[row]}, but the space's memory gives"
            f" {computed[row]:g}; choose another path, or delete the file"
        )
    rounds = archive["round"].values.astype(int)
    return History(choices, rounds, archive["accuracy"].values, memory)


def require_share(name: str, share: float) -> None:
    """Refuse percentages, and NaN.

    Raises:
        ValueError: if the number is not within 0..1.
    """
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise ValueError(
            f"{name} must be a share within 0..1, got {share}; divide a percentage by"
            " 100, and record a run that diverged as 0"
        )
