"""Configurations, choices and the memory that they cost."""

import itertools

import numpy as np
import pytest

from pipeline_src.search.space import SearchSpace, Variable

BITS = SearchSpace((Variable("x", (2, 4, 8), 300), Variable("h", (1, 8), 100)))


def test_choices_and_configurations_are_inverse():
    """For every one; names may come in any order."""
    for choices in itertools.product(range(3), range(2)):
        configuration = BITS.configuration(choices)
        turned = dict(reversed(configuration.items()))
        assert BITS.choices(configuration) == BITS.choices(turned) == choices
    assert BITS.size == 6


def test_memory_counts_the_bits_of_all_elements():
    """Against counting by hand: (300 x 4 + 100 x 1) / 8 bytes over 400 elements."""
    memory = BITS.memory_of(np.array([(1, 0)]))
    assert memory.tolist() == [(300 * 4 + 100 * 1) / 8]
    assert BITS.average_bits(memory).tolist() == [1300 / 400]


def test_uniform_bits_average_to_themselves():
    """Whatever the weights."""
    space = SearchSpace(tuple(Variable(f"v{n}", (2, 4, 8), 1 + n) for n in range(4)))
    memory = space.memory_of(np.array([[choice] * 4 for choice in range(3)]))
    assert space.average_bits(memory).tolist() == [2, 4, 8]


def test_a_function_decides_where_memory_does_not_add_up():
    """Block metadata: 8 bytes per block beside the codes."""
    variables = (Variable("bits", (2, 8), 64), Variable("block_size", (64, 16)))
    space = SearchSpace(
        variables, lambda c: 64 * c["bits"] / 8 + 8 * 64 / c["block_size"]
    )
    memory = space.memory_of(np.array([(0, 0), (1, 1)]))
    assert memory.tolist() == [16 + 8, 64 + 32]
    assert space.average_bits(memory).tolist() == [3, 12]


def test_average_bits_are_unknown_without_weights():
    space = SearchSpace((Variable("policy", ("lean", "full")),), lambda c: 5.0)
    assert np.isnan(space.average_bits(space.memory_of(np.array([[0]])))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variable("x", ()), "values of x must be one or more"),
        (lambda: Variable("x", (2, 2)), "different ones, got"),
        (lambda: Variable("x", (2,), -1), "memory_weight of x"),
        (lambda: Variable("x", (2,), float("nan")), "memory_weight of x"),
        (lambda: SearchSpace(()), "must have variables"),
        (lambda: SearchSpace((BITS.variables[0],) * 2), "different names"),
        (lambda: SearchSpace((Variable("x", (8, 2), 1),)), "increasing order"),
        (lambda: SearchSpace((Variable("x", ("a",), 1),)), "must be bits"),
        (lambda: SearchSpace((Variable("x", (2, 8)),)), "memory_weight above 0"),
        (lambda: BITS.choices({"x": 2}), "must name"),
        (lambda: BITS.choices({"x": 3, "h": 1}), r"x must be one of \(2, 4, 8\)"),
    ],
)
def test_what_cannot_be_searched_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_memory_that_is_no_number_of_bytes_is_refused():
    space = SearchSpace((Variable("x", (2, 8)),), lambda c: -1.0)
    with pytest.raises(ValueError, match=r"got -1.0 for \{'x': 2\}"):
        space.memory_of(np.array([[0]]))
