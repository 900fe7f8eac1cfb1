"""A folder of CSV tables becomes the arrays it spells out; a slip is named by line."""

import csv

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from made_up_own_graphs import given, sound_arrays

from pipeline_src.graphs.own.reading import read_own_graph
from pipeline_src.graphs.own.tables import read_tables

RING = {
    "edges.csv": "source,target\n" + "".join(f"{i},{(i + 1) % 6}\n" for i in range(6)),
    "features.csv": "width,height\n" + "".join(f"{i}.5,-1e-3\n" for i in range(6)),
    "labels.csv": "label\n0\n1\n0\n1\n0\n1\n",
    "split.csv": "split\ntrain\ntrain\nval\nval\ntest\nnone\n",
}
NAMED = {
    "edges.csv": "source,target\nb,a\na,x y\n",
    "features.csv": 'width,node\n1,a\n2,b\n3,"x y"\n',
    "labels.csv": "node,label\nx y,1\na,0\nb,1\n",
    "split.csv": "split,node\ntest,b\nval,x y\ntrain,a\n",
}


def written(folder, tables):
    for name, text in tables.items():
        if text is not None:
            content = text if isinstance(text, bytes) else text.encode()
            (folder / name).write_bytes(content)
    return folder


def as_table(names, columns):
    """As the csv module writes values, floats with all their digits."""
    lines = [",".join(names)]
    lines += [",".join(map(repr, line)) for line in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


@settings(max_examples=40, deadline=None)
@drawn(
    x=st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), min_size=1
    ),
    edges=st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2)),
    labels=st.data(),
)
def test_numbers_come_back_to_the_last_digit(x, edges, labels, tmp_path_factory):
    whole = st.integers(-(2**63), 2**63 - 1)
    y = labels.draw(st.lists(whole, min_size=len(x), max_size=len(x)))
    tables = {
        "features.csv": as_table(["a", "b"], zip(*x, strict=True)),
        "labels.csv": as_table(["label"], [y]),
        "edges.csv": as_table(["source", "target"], zip(*edges, strict=True))
        if edges
        else "source,target\n",
    }
    arrays = read_tables(written(tmp_path_factory.mktemp("tables"), tables))
    np.testing.assert_array_equal(arrays["x"], np.array(x), strict=True)
    np.testing.assert_array_equal(arrays["y"], np.array(y))
    pairs = [(int(s), int(t)) for s, t in arrays["edge_index"].T]
    assert pairs == edges


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_a_ring_is_read_whoever_wrote_its_lines(tmp_path, ending, mark):
    tables = {k: mark + v.replace("\n", ending).encode() for k, v in RING.items()}
    written(tmp_path, tables)
    graph, notes = read_own_graph("ring", given(path=str(tmp_path), undirected=True))
    assert graph.adjacency.degree.tolist() == [2] * 6
    assert graph.features.tolist() == [[i + 0.5, np.float32(-1e-3)] for i in range(6)]
    assert graph.labels.tolist() == [0, 1] * 3
    assert [nodes.tolist() for nodes in graph.splits.values()] == [[0, 1], [2, 3], [4]]
    assert notes[0] == "x: float64 became float32"


def test_nodes_with_names_are_numbered_by_the_features_in_whatever_order(tmp_path):
    arrays = read_tables(written(tmp_path, NAMED))
    assert arrays["x"].tolist() == [[1], [2], [3]]
    assert arrays["y"].tolist() == [0, 1, 1]
    assert arrays["edge_index"].tolist() == [[1, 0], [0, 2]]
    masks = ("train_mask", "val_mask", "test_mask")
    assert [arrays[name].tolist() for name in masks] == np.eye(3)[[0, 2, 1]].tolist()


@settings(max_examples=25, deadline=None)
@drawn(
    names=st.lists(st.text(max_size=5), min_size=6, max_size=6, unique=True),
    orders=st.tuples(*[st.permutations(range(6))] * 3),
)
def test_names_and_the_order_of_lines_change_no_graph(names, orders, tmp_path_factory):
    """Any text names a node; the tables are shuffled each in its own way."""
    folder, arrays = tmp_path_factory.mktemp("named"), sound_arrays()
    of_features, of_labels, of_edges = orders

    def write(name, head, lines):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([head, *lines])

    names = [f"{name}'".replace("\r", "r") for name in names]
    lines = [(names[i], *arrays["x"][i].tolist()) for i in of_features]
    write("features.csv", ["node", "a", "b", "c"], lines)
    write("labels.csv", ["label", "node"], [(i % 2, names[i]) for i in of_labels])
    ends = arrays["edge_index"].T[[*of_edges, *range(6, 12)]].tolist()
    write("edges.csv", ["source", "target"], [(names[s], names[t]) for s, t in ends])
    read = read_tables(folder)
    node = list(of_features)  # which node a line of features is
    np.testing.assert_array_equal(read["x"], arrays["x"][node])
    np.testing.assert_array_equal(read["y"], arrays["y"][node])
    back = [(node[s], node[t]) for s, t in read["edge_index"].T]
    assert back == [tuple(pair) for pair in ends]


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("edges.csv", "0,1\n1,0\n", r"edges.csv: expected the names source,target in"),
        ("edges.csv", "source;target\n0;1\n", r"first line, got 'source;target'"),
        ("edges.csv", "", r"edges.csv: expected a first line with a name.*got ''"),
        ("edges.csv", "source,target,target\n", r"expected a first line with a name"),
        (
            "edges.csv",
            "source,target\n0,1\n1,2.0\n",
            r"edges.csv: expected whole .* column 'target', got '2.0' in line 3",
        ),
        ("edges.csv", "source,target\n0,\n", r"column 'target', got '' in line 2"),
        ("edges.csv", "source,target\n0,1\n\n", r"expected 2 values.*got 0 in line 3"),
        ("edges.csv", "source,target\n0,1,2\n", r"expected 2 values.*got 3 in line 2"),
        ("edges.csv", "source,target\n0,1\n0,1,2\n", r"expected 2 .*got 3 in line 3"),
        ("edges.csv", "source,target\n0\n", r"expected 2 values.*got 1 in line 2"),
        (
            "edges.csv",
            "source,target\n0,9\n",
            r"edge_index: expected nodes in 0 \.\. 5",
        ),
        ("edges.csv", f"source,target\n0,{10**30}\n", r"edges.csv: "),
        ("edges.csv", "source,target,weight\n0,1,2\n", r"edge_weight: expected no val"),
        ("edges.csv", b"source,target\n0,\xff\n", r"edges.csv: "),
        ("edges.csv", b"\xff\xfe0,1\n", r"edges.csv: expected UTF-8 text"),
        ("features.csv", "a\n1\nx\n", r"numbers in column 'a', got 'x' in line 3"),
        ("features.csv", "a,b\n1,\n", r"numbers in column 'b', got '' in line 2"),
        ("features.csv", "a,label\n1,0\n", r"got a column label, from which a network"),
        ("features.csv", "a\n1\n2\n", r"labels.csv: expected 2 lines below.*got 6"),
        (
            "features.csv",
            RING["features.csv"].replace("3.5", "nan"),
            r"features.csv: expected finite .* 'width', got 'nan' in line 5",
        ),
        (
            "features.csv",
            "node,a\n" + "a,1\n" * 6,
            r"features.csv: expected each node once, got 'a' again in line 3",
        ),
        (
            "features.csv",
            "node,a\n" + "".join(f"{i},1\n" for i in range(6)),
            r"labels.csv and features.csv: expected a column node in both or",
        ),
        (
            "labels.csv",
            "label\ncat\n",
            r"numbers in column 'label', got 'cat' in line 2",
        ),
        (
            "labels.csv",
            "label,other\n0,1\n",
            r"labels.csv: expected the names label in",
        ),
        ("labels.csv", "label\n0\n1\n", r"labels.csv: expected 6 lines.*got 2"),
        ("labels.csv", "label\n1.0\n", r"got '1.0' in line 2"),
        ("split.csv", "split\ntrain\nvalid\n", r"none, got 'valid' in line 3"),
        ("split.csv", "split\ntrain\n\n", r"split.csv: expected one of.*'' in line 3"),
        ("split.csv", "split\ntrain\n", r"split.csv: expected 6 lines.*got 1"),
        (
            "split.csv",
            "split\n" + "train\n" * 6,
            r"val_mask: expected at least one node",
        ),
        ("split.csv", None, r"splits: expected train_mask"),
    ],
)
def test_a_slip_is_named_with_its_line(tmp_path, table, text, message):
    written(tmp_path, {**RING, table: text})
    with pytest.raises(ValueError, match=message):
        read_own_graph("ring", given(path=str(tmp_path), undirected=True))


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("edges.csv", "b,a", "c,a", r"edges.csv: .*of features.csv, got 'c' in line 2"),
        ("labels.csv", "a,0", "b,0", r"each node once, got 'b' again in line 4"),
        ("labels.csv", "a,0", "A,0", r"labels.csv: expected nodes of .*'A' in line 3"),
        ("labels.csv", "node,", "", r"labels.csv"),
        ("split.csv", "val,x y", "val,b", r"split.csv: .*got 'b' again in line 3"),
    ],
)
def test_a_name_that_no_node_has_is_named_with_its_line(
    tmp_path, table, old, new, message
):
    written(tmp_path, {**NAMED, table: NAMED[table].replace(old, new)})
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path)


def test_columns_of_edges_may_stay_unread_on_the_users_word(tmp_path):
    edges = RING["edges.csv"].replace("target\n", "target,weight\n")
    edges = edges.replace("0,1\n", "0,1,a\n")
    for i in range(1, 6):
        edges = edges.replace(f"\n{i},{(i + 1) % 6}\n", f"\n{i},{(i + 1) % 6},\n")
    written(tmp_path, {**RING, "edges.csv": edges})
    words = {"path": str(tmp_path), "undirected": True, "ignore": ["edge_weight"]}
    graph, notes = read_own_graph("ring", given(**words))
    assert graph.adjacency.num_entries == 12
    assert "not read: edge_weight" in notes


@pytest.mark.parametrize("table", ["edges.csv", "features.csv", "labels.csv"])
def test_a_missing_table_is_no_damaged_one(tmp_path, table):
    written(tmp_path, {**RING, table: None})
    with pytest.raises(FileNotFoundError):
        read_tables(tmp_path)
