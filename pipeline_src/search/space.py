"""What a search of bits chooses from, and the memory that each choice costs.

A variable takes one of a few values, listed **from the most compressed to the least**:
bits 1, 2, 4, 8, but projection ratios 8, 4, 2, 1. A configuration gives every variable
a value. Inside, it is a row of *choices*, the indices of the values, so that spaces of
bits, block sizes and layouts look alike: choice 0 is the most compressed.

Memory is computed, never learned. Where it adds up over variables it is

    memory = sum of memory_weight x bits / 8,  in bytes,

with the number of elements as weight. Metadata, projections and layouts do not add up;
then a function of the configuration gives the bytes. In both cases

    average bits = 8 x memory / sum of memory_weight.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Value = int | float | str
Configuration = Mapping[str, Value]
Choices = tuple[int, ...]


@dataclass(frozen=True)
class Variable:
    """One thing to choose.

    Args:
        name: its key in a configuration.
        values: from the most compressed to the least.
        memory_weight: number of elements that the choice is about.
        ordered: whether less compression rarely hurts accuracy; not so for layouts.
    """

    name: str
    values: tuple[Value, ...]
    memory_weight: float = 0.0
    ordered: bool = True

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(
                f"values of {self.name} must be one or more different ones,"
                f" got {self.values}"
            )
        if not (math.isfinite(self.memory_weight) and self.memory_weight >= 0):
            raise ValueError(
                f"memory_weight of {self.name} must be a number of elements,"
                f" got {self.memory_weight}"
            )


@dataclass(frozen=True)
class SearchSpace:
    """All configurations of some variables.

    Args:
        variables: what to choose.
        memory: configuration -> bytes; None where memory adds up over the variables,
            whose values are then bits.
    """

    variables: tuple[Variable, ...]
    memory: Callable[[Configuration], float] | None = None

    def __post_init__(self) -> None:
        names = [variable.name for variable in self.variables]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"a space must have variables of different names, got {names}"
            )
        if self.memory is None:
            for variable in self.variables:
                _require_bits(variable)
            if self.total_weight == 0:
                raise ValueError(
                    "memory that adds up needs a memory_weight above 0, got only 0;"
                    " give the elements of each variable, or a function as memory"
                )

    @property
    def size(self) -> int:
        """Number of configurations."""
        return math.prod(len(variable.values) for variable in self.variables)

    @property
    def num_values(self) -> np.ndarray:
        """Number of values of each variable, (num_variables,)."""
        return np.array([len(variable.values) for variable in self.variables])

    @property
    def total_weight(self) -> float:
        """Number of elements of all variables together."""
        return sum(variable.memory_weight for variable in self.variables)

    def configuration(self, choices: Choices | np.ndarray) -> dict[str, Value]:
        """Name the values that a row of choices stands for."""
        pairs = zip(self.variables, choices, strict=True)
        return {variable.name: variable.values[choice] for variable, choice in pairs}

    def choices(self, configuration: Configuration) -> Choices:
        """Find the indices of a configuration's values; inverse of configuration.

        Raises:
            ValueError: if a name or a value is not of this space.
        """
        names = [variable.name for variable in self.variables]
        if set(configuration) != set(names):
            raise ValueError(
                f"a configuration must name {names}, got {list(configuration)}"
            )
        for variable in self.variables:
            if configuration[variable.name] not in variable.values:
                raise ValueError(
                    f"{variable.name} must be one of {variable.values},"
                    f" got {configuration[variable.name]!r}"
                )
        return tuple(
            variable.values.index(configuration[variable.name])
            for variable in self.variables
        )

    def memory_of(self, choices: np.ndarray) -> np.ndarray:
        """Bytes (num_rows,) of rows of choices (num_rows, num_variables)."""
        choices = np.asarray(choices, int).reshape(-1, len(self.variables))
        if self.memory is not None:
            rows = [self.configuration(row) for row in choices]
            memory = np.array([self.memory(row) for row in rows], float)
            for row in np.flatnonzero(~(np.isfinite(memory) & (memory >= 0))):
                raise ValueError(
                    f"memory must give bytes, 0 or more, got {memory[row]} for"
                    f" {rows[row]}"
                )
            return memory
        memory = np.zeros(len(choices))
        for column, variable in zip(choices.T, self.variables, strict=True):
            bits = np.array(variable.values, float)
            memory += variable.memory_weight * bits[column] / 8
        return memory

    def average_bits(self, memory: np.ndarray) -> np.ndarray:
        """Bits per element for a memory in bytes; NaN where no variable has a weight.

        >>> space = SearchSpace((Variable("x", (2, 8), 3), Variable("h", (2, 8), 1)))
        >>> space.average_bits(space.memory_of([(0, 1)])).tolist()
        [3.5]
        """
        weight = self.total_weight
        return 8 * np.asarray(memory, float) / (weight if weight > 0 else math.nan)

    def to_json(self) -> str:
        """State the variables; a memory function is named as such only."""
        variables = [
            [variable.name, variable.values, variable.memory_weight, variable.ordered]
            for variable in self.variables
        ]
        rule = "sum of bits" if self.memory is None else "function"
        return json.dumps({"variables": variables, "memory": rule})


def _require_bits(variable: Variable) -> None:
    values = variable.values
    numeric = all(isinstance(value, int | float) and value > 0 for value in values)
    if not numeric or list(values) != sorted(values):
        raise ValueError(
            f"values of {variable.name} must be bits in increasing order where memory"
            f" adds up, got {values}; give the space a function as memory"
        )
