"""A split made from a seed: its shares, and that it is the same everywhere."""

import numpy as np
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_up_own_graphs import given, sound_arrays

from pipeline_src.graphs.own.splits import checked_splits, seeded_split

shares = st.floats(0.05, 0.9)


@settings(max_examples=100, deadline=None)
@drawn(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array),
    train=shares,
    val=shares,
    seed=st.integers(0, 2**32 - 1),
)
def test_shares_of_a_class_are_met_up_to_rounding(labels, train, val, seed):
    if train + val >= 1:
        train, val = train / 2, val / 2
    parts = seeded_split(labels, train, val, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels))), "each node once"
    assert all((np.diff(part) > 0).all() for part in parts)
    tiny = len(labels) * 1e-15 + 1e-15  # of float64 products below 64
    for label in set(labels.tolist()):
        size = int((labels == label).sum())
        one, two, three = (int((labels[part] == label).sum()) for part in parts)
        assert abs(one - size * train) <= 0.5 + tiny
        assert abs(two - size * val) <= 1 + tiny
        assert abs(three - size * (1 - train - val)) <= 0.5 + tiny


def test_a_seed_draws_one_split_and_another_seed_another():
    labels = np.arange(200) % 3
    first, again, other = (seeded_split(labels, 0.5, 0.25, s) for s in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])
    moved = np.intersect1d(first[0], other[0]).size
    assert moved < len(first[0]), "drawn, not cut in order"


def test_a_class_is_cut_in_the_order_of_one_shuffle_of_all_nodes():
    """Against the definition, one node at a time; with enough nodes to tell sorts."""
    labels = np.random.default_rng(7).integers(0, 3, 999)
    shuffled = np.random.default_rng(4).permutation(999).tolist()
    expected: tuple[list[int], ...] = ([], [], [])
    for label in range(3):
        nodes = [node for node in shuffled if labels[node] == label]
        for place, node in enumerate(nodes):
            # The number of nodes before a cut is its share, rounded: halves up.
            beyond = [place + 0.5 > len(nodes) * share for share in (0.5, 0.75)]
            expected[sum(beyond)].append(node)
    for part, nodes in zip(seeded_split(labels, 0.5, 0.25, 4), expected, strict=True):
        assert part.tolist() == sorted(nodes)


PINNED = [[2, 3, 4, 5, 6, 7], [0, 9], [1, 8]]


def test_the_numbers_drawn_are_these_on_every_machine():
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    parts = [part.tolist() for part in seeded_split(labels, 0.6, 0.2, 0)]
    assert parts == PINNED


def test_the_word_of_the_configuration_goes_before_the_masks_of_the_file():
    arrays = sound_arrays()
    word = {"train": 0.34, "val": 0.33, "seed": 5}
    labels = arrays["y"]
    made = checked_splits(arrays, given(split=word), labels)
    drawn_again = seeded_split(labels, 0.34, 0.33, 5)
    assert all(map(np.array_equal, made, drawn_again))
    own = checked_splits(arrays, given(), labels)
    assert [part.tolist() for part in own] == [[0, 1], [2, 3], [4, 5]]
