"""Which configurations to measure next: four answers to the same question.

A strategy is a plain function of what is known and of random numbers. It returns new
configurations only, and none when it has nothing left to ask.

* ``uniform``: one choice for all variables, from the least compressed.
* ``random``: any configuration, all equally likely.
* ``greedy``: measure each variable alone, then lower, from the least compressed, what
  lost least per byte, as long as the aim holds.
* ``surrogate``: start from uniform choices and single variables; then, in turns, fit a
  forest of regression trees to what was measured and measure what it finds promising.
  Regression trees as cost model of bits: SGQuant, arXiv:2007.05100.

What makes the forest work with few measurements is knowledge that holds for bits of
any network: less compression rarely hurts, so trees are held to be monotone; far below
the aim it does not matter how far, so accuracies are cut there; and each next candidate
is a few changes away from the best known ones. Around the very best all changes of one
and two variables are candidates, and a step down of all variables but one: in a space
of a dozen variables drawing would miss the few that matter.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from scipy.special import ndtr
from sklearn.ensemble import RandomForestRegressor

from pipeline_src.search.archive import (
    SAME_ACCURACY,
    History,
    SearchSettings,
)
from pipeline_src.search.space import Choices, SearchSpace

NUM_TREES = (
    30  # 100 find nothing better in the tests' landscapes, and take thrice as long
)
NUM_MUTATED = 2000  # candidates near the best ones
NUM_RANDOM = 500  # candidates anywhere
NUM_PARENTS = 20
NUM_SURROUNDED = 3  # best ones, all of whose neighbours are candidates
MAX_CHANGES = 3  # variables that differ between parent and candidate
EXPLORED_SHARE = 0.25  # of a round: where the forest is least sure
# Accuracy shares: what repeated trainings differ by at least, and how far below the aim
# accuracies are cut.
LEAST_NOISE = 0.003
CUT_BELOW = 0.1
# A shortfall of this share counts as much as the memory of no compression at all.
SHORTFALL = 0.16


def propose_uniform(
    settings: SearchSettings, history: History, rng: np.random.Generator
) -> list[Choices]:
    """Take the same place among its values for every variable, least compressed first.

    Variables with fewer values than others move on at the nearest place.
    """
    return _new(_uniform(settings.space), history)[: settings.round_size]


def propose_random(
    settings: SearchSettings, history: History, rng: np.random.Generator
) -> list[Choices]:
    """Draw configurations without replacement."""
    known = _known(history)
    drawn: dict[Choices, None] = {}  # a set that keeps its order
    space = settings.space
    while len(drawn) < min(settings.round_size, space.size - len(known)):
        choices = tuple(rng.integers(space.num_values).tolist())
        if choices not in known:
            drawn[choices] = None
    return list(drawn)


def propose_greedy(
    settings: SearchSettings, history: History, rng: np.random.Generator
) -> list[Choices]:
    """Walk down from the least compressed, cheapest step first.

    The walk is replayed from the history. A step that breaks max_drop is undone and its
    variable left alone. Steps beyond what is measured are taken to succeed, which fills
    a round.
    """
    space = settings.space
    top = _top(space)
    singles = [
        _with(top, column, choice)
        for column in range(len(top))
        for choice in range(top[column])
    ]
    missing = _new([top, *singles], history)
    if missing:
        return missing[: settings.round_size]
    accuracy = dict(zip(_rows(history.choices), history.accuracy, strict=True))
    proposed: list[Choices] = []
    place, free = top, set(range(len(top)))
    while len(proposed) < settings.round_size:
        memory = float(space.memory_of(np.array(place))[0])
        if settings.max_memory is not None and memory <= settings.max_memory:
            break
        prices = {}
        for column in free:
            if place[column] == 0:
                continue
            step = _with(place, column, place[column] - 1)
            saved = memory - float(space.memory_of(np.array(step))[0])
            before = accuracy[_with(top, column, place[column])]
            after = accuracy[_with(top, column, place[column] - 1)]
            if saved > 0:
                prices[max(before - after, 0) / saved, column] = step
        if not prices:
            break
        (_, column), step = min(prices.items())
        if step not in accuracy:
            proposed.append(step)
        elif not _meets_drop(settings, accuracy[step]):
            free.remove(column)
            continue
        place = step
    return proposed


def propose_surrogate(
    settings: SearchSettings, history: History, rng: np.random.Generator
) -> list[Choices]:
    """Measure a starting design, then what a forest of regression trees finds best.

    Most of a round goes to the greatest expected gain, the rest to configurations that
    would be a gain and of which the forest is least sure whether they meet the aim.
    """
    space = settings.space
    missing = _new([*_uniform(space), *_single_drops(space)], history)
    if missing:
        return missing[: settings.round_size]
    candidates = _candidates(settings, history, rng)
    if not len(candidates):
        return propose_random(settings, history, rng)
    mean, spread = _predict(settings, history, candidates, rng)
    memory = space.memory_of(candidates)
    if settings.max_drop is not None:
        gain, chance = _gain_of_memory(settings, history, mean, spread, memory)
    else:
        gain, chance = _gain_of_accuracy(settings, history, mean, spread, memory)
    doubt = np.where(gain > 0, chance * (1 - chance), 0)
    num_explored = int(EXPLORED_SHARE * settings.round_size)
    # Ties go to the first of the sorted candidates: the sort is stable.
    by_gain = np.argsort(-gain, kind="stable")
    chosen = list(by_gain[: settings.round_size - num_explored])
    by_doubt = np.argsort(-doubt, kind="stable")
    unchosen = by_doubt[~np.isin(by_doubt, chosen)]
    chosen += list(unchosen[: settings.round_size - len(chosen)])
    return _rows(candidates[chosen])


def _gain_of_memory(
    settings: SearchSettings,
    history: History,
    mean: np.ndarray,
    spread: np.ndarray,
    memory: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected bytes saved, and the chance that the accuracy suffices."""
    feasible = _meets_drop(settings, history.accuracy)
    # Without a feasible one every candidate is a gain, and a likely one a greater gain.
    ceiling = settings.space.memory_of(np.array(_top(settings.space)))[0] * 1.1
    least = history.memory[feasible].min(initial=ceiling)
    chance = ndtr((mean - _aim(settings)) / spread)
    return chance * np.maximum(least - memory, 0), chance


def _gain_of_accuracy(
    settings: SearchSettings,
    history: History,
    mean: np.ndarray,
    spread: np.ndarray,
    memory: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected improvement of the accuracy within max_memory, and its chance."""
    assert settings.max_memory is not None
    within = history.memory <= settings.max_memory
    best = history.accuracy[within].max(initial=0.0)
    score = (mean - best) / spread
    chance = ndtr(score)
    density = np.exp(-(score**2) / 2) / np.sqrt(2 * np.pi)
    gain = spread * (score * chance + density)
    return np.where(memory <= settings.max_memory, gain, 0), chance


def _predict(
    settings: SearchSettings,
    history: History,
    candidates: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the accuracy that the trees of a forest predict."""
    ordered = [int(variable.ordered) for variable in settings.space.variables]
    summary = int(all(ordered))
    forest = RandomForestRegressor(
        NUM_TREES,
        monotonic_cst=[*ordered, summary, summary],
        random_state=int(rng.integers(2**31)),
        n_jobs=1,
    )
    accuracy = np.maximum(history.accuracy, _aim(settings) - CUT_BELOW)
    forest.fit(_features(settings.space, history.choices), accuracy)
    features = _features(settings.space, candidates)
    predicted = np.stack([tree.predict(features) for tree in forest.estimators_])
    return predicted.mean(axis=0), np.hypot(predicted.std(axis=0), LEAST_NOISE)


def _features(space: SearchSpace, choices: np.ndarray) -> np.ndarray:
    """Choices, each within 0..1, and their mean and minimum."""
    scaled = choices / np.maximum(space.num_values - 1, 1)
    return np.column_stack([scaled, scaled.mean(axis=1), scaled.min(axis=1)])


def _candidates(
    settings: SearchSettings, history: History, rng: np.random.Generator
) -> np.ndarray:
    """Unmeasured rows of choices in lexical order, near the best ones and anywhere."""
    space = settings.space
    parents = history.choices[np.argsort(_badness(settings, history), kind="stable")]
    rows = parents[:NUM_PARENTS][
        rng.integers(min(NUM_PARENTS, len(parents)), size=NUM_MUTATED)
    ]
    num_changes = rng.integers(1, MAX_CHANGES + 1, size=NUM_MUTATED)
    for change in range(MAX_CHANGES):
        changed = np.flatnonzero(change < num_changes)
        columns = rng.integers(len(space.variables), size=len(changed))
        rows[changed, columns] = rng.integers(space.num_values[columns])
    anywhere = rng.integers(space.num_values, size=(NUM_RANDOM, len(space.variables)))
    near = [_neighbours(space, parent) for parent in _rows(parents[:NUM_SURROUNDED])]
    unique = np.unique(np.concatenate([rows, anywhere, *near]), axis=0)
    known = _known(history)
    return unique[[row not in known for row in _rows(unique)]]


def _neighbours(space: SearchSpace, choices: Choices) -> np.ndarray:
    """Rows that differ in one or two variables, and steps down of all but one."""
    changes = [
        (column, choice)
        for column, count in enumerate(space.num_values)
        for choice in range(count)
        if choice != choices[column]
    ]
    rows = [_with(choices, *change) for change in changes]
    for (column, choice), (other, value) in itertools.combinations(changes, 2):
        if column != other:
            rows.append(_with(_with(choices, column, choice), other, value))
    lower = tuple(max(choice - 1, 0) for choice in choices)
    rows += [_with(lower, column, choices[column]) for column in range(len(choices))]
    return np.array([*rows, lower], int)


def _badness(settings: SearchSettings, history: History) -> np.ndarray:
    """How far from the aim, and how costly: what mutations should start from is low."""
    full = settings.space.memory_of(np.array(_top(settings.space)))[0]
    shortfall = _aim(settings) - history.accuracy
    if settings.max_memory is not None:
        excess = np.maximum(history.memory - settings.max_memory, 0)
        return excess / full + shortfall / SHORTFALL
    return history.memory / full + np.maximum(shortfall, 0) / SHORTFALL


def _aim(settings: SearchSettings) -> float:
    """The least accuracy allowed, or the baseline where memory is what is limited."""
    return settings.baseline - (settings.max_drop or 0.0)


def _meets_drop(settings: SearchSettings, accuracy: np.ndarray) -> np.ndarray:
    """Whether accuracies are allowed; all are where memory is what is limited."""
    if settings.max_drop is None:
        return np.ones_like(accuracy, bool)
    return accuracy >= _aim(settings) - SAME_ACCURACY


def _uniform(space: SearchSpace) -> list[Choices]:
    """The same relative place for all variables, from the least compressed."""
    most = int(space.num_values.max())
    places = np.linspace(1, 0, most)[:, None]
    return _rows(np.rint(places * (space.num_values - 1)).astype(int))


def _single_drops(space: SearchSpace) -> list[Choices]:
    """One variable half or fully compressed, all others not at all."""
    top = _top(space)
    return [
        _with(top, column, choice)
        for column, last in enumerate(top)
        for choice in sorted({0, last // 2}, reverse=True)
        if choice < last
    ]


def _top(space: SearchSpace) -> Choices:
    return tuple((space.num_values - 1).tolist())


def _with(choices: Choices, column: int, choice: int) -> Choices:
    return (*choices[:column], choice, *choices[column + 1 :])


def _rows(choices: np.ndarray) -> list[Choices]:
    return [tuple(row) for row in choices.tolist()]


def _known(history: History) -> set[Choices]:
    return set(_rows(history.choices))


def _new(proposed: Iterable[Choices], history: History) -> list[Choices]:
    """Leave out what is known, and repetitions."""
    known = _known(history)
    return [choices for choices in dict.fromkeys(proposed) if choices not in known]
