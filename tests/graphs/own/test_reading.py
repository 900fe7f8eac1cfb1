"""Sound arrays become the graph they describe; each fault is named with its way out."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_up_own_graphs import as_tensors, given, sound_arrays
from torch_geometric.data import Data

from pipeline_src.graphs.graph import check_graph
from pipeline_src.graphs.own.reading import graph_from_arrays, read_own_graph
from pipeline_src.graphs.own.splits import seeded_split

NUM_NODES = 5
ends = st.integers(0, NUM_NODES - 1)
edge_lists = st.lists(st.tuples(ends, ends), min_size=1, max_size=14)


def dense(adjacency):
    """Entry (i, j) tells whether j sends to i."""
    matrix = np.zeros((adjacency.num_nodes,) * 2, dtype=bool)
    for i, (start, stop) in enumerate(itertools.pairwise(adjacency.row_pointer)):
        matrix[i, adjacency.column[start:stop]] = True
    return matrix


def expected_edges(edges, undirected, repeated_edges, self_loops):
    """Edges that remain, one by one; or the words with which the list is refused."""
    if self_loops == "refuse" and any(s == t for s, t in edges):
        return "from a node to itself"
    if self_loops == "remove":
        edges = [(s, t) for s, t in edges if s != t]
    if not edges:
        return "at least one edge"
    if repeated_edges == "refuse" and max(Counter(edges).values()) > 1:
        return "expected each edge once"
    reverse = [(t, s) for s, t in edges]
    if undirected is None and set(reverse) != set(edges):
        return "expected both directions"
    return set(edges) | (set(reverse) if undirected else set())


@settings(max_examples=150, deadline=None)
@drawn(
    edges=edge_lists,
    undirected=st.sampled_from([None, True, False]),
    repeated_edges=st.sampled_from(["refuse", "merge"]),
    self_loops=st.sampled_from(["refuse", "keep", "remove"]),
)
def test_edges_become_what_the_users_words_say_or_are_refused(edges, **words):
    node = np.arange(NUM_NODES)
    arrays = {
        "x": np.eye(NUM_NODES, dtype=np.float32),
        "y": node % 2,
        "edge_index": np.array(edges).T,
        "train_index": node[:1],
        "val_index": node[1:2],
        "test_index": node[2:3],
    }
    expected = expected_edges(edges, **words)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            graph_from_arrays("mine", arrays, given(**words))
        return
    graph, _ = graph_from_arrays("mine", arrays, given(**words))
    check_graph(graph)
    assert {(j, i) for i, j in np.argwhere(dense(graph.adjacency)).tolist()} == expected


@st.composite
def graphs(draw):
    """Arrays of an undirected graph with a split of its own."""
    num_nodes = draw(st.integers(3, 9))
    pairs = list(itertools.combinations(range(num_nodes), 2))
    some = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    edges = draw(st.permutations([*some, *[(t, s) for s, t in some]]))
    roles = draw(
        st.lists(st.integers(0, 3), min_size=num_nodes, max_size=num_nodes).filter(
            lambda roles: {0, 1, 2} <= set(roles)
        )
    )
    roles = np.array(roles)
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    x = draw(st.lists(finite, min_size=num_nodes, max_size=num_nodes))
    y = np.array(draw(st.permutations([0, 1, *[draw(st.integers(0, 2))] * num_nodes])))
    return {
        "x": np.array(x, dtype=np.float32)[:, None],
        "y": np.append(y[: num_nodes - 1], 1),
        "edge_index": np.array(edges).T.copy(),
        "train_mask": roles == 0,
        "val_mask": roles == 1,
        "test_mask": roles == 2,
    }


@settings(max_examples=40, deadline=None)
@drawn(arrays=graphs())
def test_a_saved_data_comes_back_whole_from_either_kind_of_file(
    arrays, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("saved")
    torch.save(Data(**as_tensors(arrays)), folder / "mine.pt")
    np.savez(folder / "mine.npz", **arrays)
    for name in ("mine.pt", "mine.npz"):
        graph, notes = read_own_graph("mine", given(path=str(folder / name)))
        check_graph(graph)
        num_nodes = len(arrays["x"])
        matrix = np.zeros((num_nodes, num_nodes), dtype=bool)
        for source, target in arrays["edge_index"].T:
            matrix[target, source] = True
        np.testing.assert_array_equal(dense(graph.adjacency), matrix)
        assert graph.features.numpy().tobytes() == arrays["x"].tobytes()
        np.testing.assert_array_equal(graph.labels, arrays["y"])
        masks = (arrays[f"{part}_mask"] for part in ("train", "val", "test"))
        for nodes, mask in zip(graph.splits.values(), masks, strict=True):
            assert nodes.tolist() == [i for i, inside in enumerate(mask) if inside]
        assert not [note for note in notes if not note.startswith("y: ")]


def broken(**changes):
    """Sound arrays with others in place of some; None takes one away."""
    arrays = {**sound_arrays(), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def with_value(name, place, value):
    array = sound_arrays()[name]
    array[place] = value
    return {name: array}


NO_MASKS = dict.fromkeys(("train_mask", "val_mask", "test_mask"))
NODES = np.arange(6)
COLUMNS = {
    name: np.stack([~mask, mask], axis=1)
    for name, mask in sound_arrays().items()
    if name in NO_MASKS
}
LISTS = {
    "train_index": NODES[4:],
    "val_index": NODES[:2],
    "test_index": NODES[[3, 2]],
}


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        # features
        ({"x": None}, {}, r"x: expected an array of this name.* edge_index, test_mask"),
        ({"x": np.zeros(6)}, {}, r"x: expected a table.*got shape \(6,\).*one column"),
        ({"x": np.zeros((6, 0))}, {}, r"x: expected a table.*got shape \(6, 0\)"),
        ({"x": np.zeros((0, 3))}, {}, r"x: expected a table.*got shape \(0, 3\)"),
        ({"x": np.zeros((6, 3), complex)}, {}, r"x: expected numbers, got complex128"),
        ({"x": np.full((6, 3), "a")}, {}, r"x: expected numbers, got <U1"),
        (
            with_value("x", (4, 1), np.nan),
            {},
            r"x: expected finite.*1 of 18, the first in row 4, column 1",
        ),
        (with_value("x", (5, 2), -np.inf), {}, r"x: expected finite.*row 5, column 2"),
        (
            {"x": np.full((6, 3), 1e39)},
            {},
            r"x: expected finite.*float32 can hold, got larger ones",
        ),
        ({"num_nodes": np.array(7)}, {}, r"num_nodes: expected 6, .*, got 7"),
        # classes
        ({"y": None}, {}, r"y: expected an array of this name"),
        ({"y": NODES[:5] % 2}, {}, r"y: expected 6 classes.*got shape \(5,\)"),
        (
            {"y": np.eye(2, dtype=int)[NODES % 2]},
            {},
            r"y: expected one.*\(6, 2\).*argmax",
        ),
        ({"y": np.eye(6, 2) * 2}, {}, r"y: expected a table of 0 and 1.*float64"),
        ({"y": np.eye(5, 2)}, {}, r"y: expected 6 rows.*got shape \(5, 2\)"),
        ({"y": NODES % 2 / 1}, {}, r"y: expected classes as int.*float64.*y.long\(\)"),
        ({"y": NODES % 2 == 1}, {}, r"y: expected classes as integers, got bool"),
        (
            with_value("y", 3, -1),
            {},
            r"from 0, got -1 at node 3 \(1 are negative\).*unlabeled: exclude",
        ),
        (with_value("y", 3, 6), {}, r"y: expected at least 2 .*a largest class of 6"),
        ({"y": 0 * NODES}, {}, r"y: expected at least 2 classes.*class of 0"),
        (
            {"y": np.full(6, 2**63, dtype=np.uint64)},
            {},
            r"y must hold numbers that int64 can",
        ),
        (
            with_value("y", 3, -1),
            {"unlabeled": "exclude"},
            r"val_mask: expected nodes with a class, got 1 without.*is node 3",
        ),
        ({"y": 0 * NODES - 1}, {"unlabeled": "exclude"}, r"y: expected at least 2 cl"),
        # edges
        ({"edge_index": None}, {}, r"edge_index: expected an array of this name"),
        (
            {"edge_index": sound_arrays()["edge_index"].T},
            {},
            r"edge_index: expected shape \(2, num_edges\).*\(12, 2\); turn it round",
        ),
        ({"edge_index": NODES}, {}, r"edge_index: expected shape.*got \(6,\)$"),
        (
            {"edge_index": sound_arrays()["edge_index"].astype(np.float32)},
            {},
            r"edge_index: expected .* integers, got float32",
        ),
        (
            {"edge_index": sound_arrays()["edge_index"] + 0.5},
            {},
            r"edge_index: expected .* integers, got float64",
        ),
        (
            with_value("edge_index", (1, 7), 6),
            {},
            r"edge_index: expected nodes in 0 \.\. 5.*got 0 \.\. 6, first in edge 7: "
            r"2 -> 6; nodes are counted from 0",
        ),
        (with_value("edge_index", (0, 2), -1), {}, r"got -1 \.\. 5, first in edge 2"),
        (
            {"edge_index": np.zeros((2, 0), int)},
            {},
            r"edge_index: expected at least one edge, got none",
        ),
        (
            {"edge_index": sound_arrays()["edge_index"][:, :6]},
            {},
            r"expected both directions.*6 of 6 without.*undirected: true.*false",
        ),
        (
            {"edge_index": sound_arrays()["edge_index"][:, [*range(12), 0]]},
            {},
            r"expected each edge once, got 1 that.*repeated_edges: merge",
        ),
        (
            with_value("edge_index", (slice(None), 0), 3),
            {},
            r"from a node to itself, got 1, the first at node 3.*self_loops: keep",
        ),
        (
            {"edge_attr": np.ones(12), "edge_weight": np.ones(12)},
            {},
            r"edge_attr, edge_weight: expected no values.*"
            r"ignore: \[edge_attr, edge_weight\]",
        ),
        ({"edge_attr": np.ones(12)}, {"ignore": ["edge_atr"]}, r"got 'edge_atr' for a"),
        ({}, {"ignore": ["x"]}, r"expected names of arrays that are not read, got 'x'"),
        # splits
        (NO_MASKS, {}, r"expected train_mask.*got none; .*split: \{train: 0.6"),
        ({"val_mask": None}, {}, r"expected train_mask, .*got no val_mask"),
        (LISTS, {}, r"expected masks or numbers of nodes, got both"),
        (
            {"val_mask": NODES < 0},
            {},
            r"val_mask: expected at least one node, got none",
        ),
        (
            {"val_mask": NODES < 3},
            {},
            r"train_mask and val_mask: expected no node in both, got 2, the first is "
            r"node 0",
        ),
        ({"test_mask": NODES // 4}, {}, r"test_mask: expected true or false.*int64"),
        ({"test_mask": NODES[:5] > 3}, {}, r"test_mask: expected 6 values.*\(5,\)"),
        ({"test_mask": np.ones((2, 6), bool)}, {}, r"test_mask: expected 6 values"),
        (COLUMNS, {}, r"train_mask: expected one split, got 2.*split: \{column: 0\}"),
        (
            COLUMNS,
            {"split": {"column": 2}},
            r"column: expected 0 \.\. 1, .*got 2",
        ),
        ({}, {"split": {"column": 0}}, r"split.column: expected masks with several"),
        (
            {**NO_MASKS, **LISTS, "val_index": NODES[:2] + 0.0},
            {},
            r"val_index: expected a list of nodes as integers, got float64",
        ),
        (
            {**NO_MASKS, **LISTS, "val_index": NODES[:2] - 1},
            {},
            r"val_index: expected nodes in 0 \.\. 5.*got -1 \.\. 0",
        ),
        (
            {**NO_MASKS, **LISTS, "val_index": NODES[[1, 0, 1]]},
            {},
            r"val_index: expected each node once, got 1 twice",
        ),
        (
            {**NO_MASKS},
            {"split": {"train": 0.9, "val": 0.05}},
            r"val: expected at least one node, got none; .*change the shares",
        ),
    ],
)
def test_a_fault_is_named_with_its_way_out(changes, keys, message):
    graph_from_arrays("mine", sound_arrays(), given())
    with pytest.raises(ValueError, match=message):
        graph_from_arrays("mine", broken(**changes), given(**keys))


def test_a_message_names_the_graph_and_its_file(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **broken(y=None))
    with pytest.raises(ValueError, match=rf"graphs\.mine, read from {path}: y: "):
        read_own_graph("mine", given(path=str(path)))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, bool, ">f4"])
def test_features_of_any_numbers_become_float32(dtype):
    x = (sound_arrays()["x"] * 4).astype(dtype)
    graph, notes = graph_from_arrays("mine", broken(x=x), given())
    assert graph.features.dtype == torch.float32
    np.testing.assert_array_equal(graph.features, x.astype(np.float32))
    assert ("x: " in " ".join(notes)) == (x.dtype != np.float32)


def test_columns_lists_and_single_columns_mean_the_same_graph():
    """Another way to say what a split or a class is changes nothing."""
    plain, _ = graph_from_arrays("mine", sound_arrays(), given())
    lists = {
        f"{part}_index": np.flatnonzero(sound_arrays()[f"{part}_mask"])[::-1]
        for part in ("train", "val", "test")
    }
    for changes, keys in (
        ({**NO_MASKS, **lists}, {}),
        (COLUMNS, {"split": {"column": 1}}),
        ({**COLUMNS, "test_mask": NODES >= 4}, {"split": {"column": 1}}),
        ({"y": (NODES % 2)[:, None].astype(np.int32)}, {}),
        ({"num_nodes": np.array(6)}, {}),
    ):
        other, _ = graph_from_arrays("mine", broken(**changes), given(**keys))
        assert torch.equal(other.labels, plain.labels)
        for one, two in zip(other.splits.values(), plain.splits.values(), strict=True):
            assert torch.equal(one, two)


def test_what_was_done_is_said():
    arrays = broken(
        x=sound_arrays()["x"].astype(float),
        y=np.array([0, 3, 0, 3, 0, 3]),
        edge_index=sound_arrays()["edge_index"][:, :6],
        edge_attr=np.ones(6),
        pos=np.ones(6),
    )
    keys = {"undirected": True, "ignore": ["edge_attr"]}
    assert graph_from_arrays("mine", arrays, given(**keys)).notes == [
        "x: float64 became float32",
        "y: 2 classes have no node: 1, 2",
        "edge_index: 6 edges became 12",
        "edge_index: every edge is taken both ways",
        "not read: edge_attr, pos",
    ]
    keys["undirected"] = False
    notes = graph_from_arrays("mine", arrays, given(**keys)).notes
    assert "edge_index: directions are kept, a node hears from sources only" in notes


@settings(max_examples=60, deadline=None)
@drawn(labels=st.lists(st.integers(-2, 2), min_size=12, max_size=12))
def test_nodes_without_a_class_stay_in_the_graph_and_out_of_a_made_split(labels):
    """The split is that of the labelled nodes alone, under their own numbers."""
    num_nodes, y = len(labels), np.array([0, 1] * 6 + labels)
    around = np.arange(len(y))
    ring = np.stack([around, (around + 1) % len(y)])
    arrays = {"x": np.eye(len(y)), "y": y, "edge_index": ring}
    words = {"train": 0.5, "val": 0.25, "seed": 3}
    keys = {"undirected": True, "unlabeled": "exclude", "split": words}
    graph, notes = graph_from_arrays("mine", arrays, given(**keys))
    check_graph(graph)
    assert graph.num_nodes == num_nodes + 12
    assert graph.adjacency.degree.tolist() == [2] * len(y)
    labeled = [node for node in range(len(y)) if y[node] >= 0]
    alone = seeded_split(y[labeled], 0.5, 0.25, 3)
    for nodes, part in zip(graph.splits.values(), alone, strict=True):
        assert nodes.tolist() == [labeled[i] for i in part]
        assert graph.labels[nodes].tolist() == y[nodes].tolist()
    said = [note for note in notes if "no class" in note]
    unlabeled = len(y) - len(labeled)
    expected = f"y: {unlabeled} nodes have no class, and are in no split"
    assert said == ([expected] if unlabeled else [])


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_a_table_of_several_labels_stays_one(dtype):
    """A node may have none; shares of a split are those of all nodes."""
    table = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    arrays = broken(y=table.astype(dtype), **NO_MASKS)
    made = given(split={"train": 0.5, "val": 0.2})
    graph, notes = graph_from_arrays("mine", arrays, made)
    assert graph.is_multilabel
    assert (graph.labels.numpy() == table).all()
    assert graph.num_classes == 3
    assert [len(index) for index in graph.splits.values()] == [3, 1, 2]
    assert "y: 3 labels, of which a node may have several" in notes
    assert "y: 1 classes have no node: 2" in notes
    check_graph(graph)
