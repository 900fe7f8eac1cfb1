"""Accuracies of all 3^9 assignments of bits, for searches to be held against.

In percentage points, an assignment loses

* for each variable what its bits cost alone: nothing at 8 bits, most at 2;
* for two of the variables, as for attention, a cliff at 2 bits;
* for some pairs, more if both are low than each alone;
* and the noise of measuring it, drawn once for each assignment.

The losses add up inside 14 + 67.5 exp(-loss / 67.5), which cannot fall below chance.
In every second landscape the variables hold unequal numbers of elements.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from pipeline_src.search.space import Configuration, SearchSpace, Variable

BITS = (2, 4, 8)
NUM_VARIABLES = 9
ALL_CHOICES = np.array(list(itertools.product(range(3), repeat=NUM_VARIABLES)))
BASELINE, CHANCE = 81.5, 14.0  # percent
NOISE = 0.3  # percentage points, one standard deviation


@dataclass(frozen=True)
class Landscape:
    """An exhaustive ground truth."""

    space: SearchSpace
    accuracy: np.ndarray  # (3**9,) share, as measured
    exact_accuracy: np.ndarray  # (3**9,) share, without the noise
    average_bits: np.ndarray  # (3**9,)

    def evaluate(self, configuration: Configuration) -> float:
        return float(self.accuracy[self.row(configuration)])

    def row(self, configuration: Configuration) -> int:
        choices = self.space.choices(configuration)
        return int(np.ravel_multi_index(choices, (3,) * NUM_VARIABLES))

    def optimum(self, max_drop: float) -> float:
        """Least average bits of all assignments within max_drop (a share)."""
        allowed = self.accuracy >= BASELINE / 100 - max_drop
        return float(self.average_bits[allowed].min())


def made_up_landscape(number: int) -> Landscape:
    """One of a family, the same for the same number."""
    rng = np.random.default_rng(number)
    columns = np.arange(NUM_VARIABLES)
    at_two = 0.8 * np.exp(rng.normal(0, 1, NUM_VARIABLES))  # points lost at 2 bits
    at_four = at_two * rng.uniform(0.02, 0.3, NUM_VARIABLES)
    alone = np.stack([at_two, at_four, np.zeros(NUM_VARIABLES)], axis=1)
    severity = (alone / at_two[:, None])[columns, ALL_CHOICES]  # 0..1
    alone[rng.choice(NUM_VARIABLES, 2, replace=False), 0] += rng.uniform(15, 40, 2)
    loss = alone[columns, ALL_CHOICES].sum(axis=1)
    for _ in range(6):
        one, other = rng.choice(NUM_VARIABLES, 2, replace=False)
        together = np.exp(rng.normal(0, 0.7))
        loss += together * severity[:, one] * severity[:, other]
    above = BASELINE - CHANCE
    exact = CHANCE + above * np.exp(-loss / above)
    elements = np.ones(NUM_VARIABLES)
    if number % 2:
        elements = np.exp(rng.normal(0, 1, NUM_VARIABLES))
    space = SearchSpace(
        tuple(
            Variable(f"group_{column}", BITS, float(elements[column]))
            for column in columns
        )
    )
    return Landscape(
        space,
        (exact + rng.normal(0, NOISE, len(exact))) / 100,
        exact / 100,
        np.array(BITS)[ALL_CHOICES] @ elements / elements.sum(),
    )
