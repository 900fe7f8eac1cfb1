"""Adjacency, graphs in files, embedded and synthetic graphs."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from pipeline_src.gnn import graphs
from pipeline_src.gnn.embedded_graphs import (
    DIGITS_NEIGHBORS,
    EMBEDDED_GRAPHS,
    arxiv_shape,
    digits_graph,
    flickr_shape,
    synthetic_graph,
)
from pipeline_src.gnn.graphs import (
    Adjacency,
    Graph,
    adjacency_from_edges,
    read_graph,
    write_graph,
)
from pipeline_src.gnn.planted import TAIL
from pipeline_src.gnn.splits import stratified_split


@st.composite
def edge_lists(draw, max_nodes=12):
    """Number of nodes, sources, targets; loops, repeats and lonely nodes occur."""
    num_nodes = draw(st.integers(1, max_nodes))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=40))
    source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    return num_nodes, source, target


@st.composite
def small_graphs(draw):
    num_nodes, source, target = draw(edge_lists())
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_features, num_classes = draw(st.integers(0, 9)), draw(st.integers(1, 4))
    kept = generator.random((num_nodes, num_features)) < draw(st.sampled_from([0.1, 1]))
    features = kept * generator.standard_normal(kept.shape)
    labels = generator.integers(0, num_classes, num_nodes)
    return Graph(
        name=draw(st.text(max_size=5).filter(lambda name: not name.endswith("\0"))),
        features=torch.from_numpy(features.astype(np.float32)),
        labels=torch.from_numpy(labels),
        adjacency=adjacency_from_edges(
            source, target, num_nodes, symmetrize=draw(st.booleans())
        ),
        num_classes=num_classes,
        **stratified_split(labels, seed=0),
    )


def dense(adjacency: Adjacency) -> np.ndarray:
    """The adjacency as a matrix of zeros and ones, entry by entry."""
    matrix = np.zeros((adjacency.num_nodes, adjacency.num_nodes), dtype=int)
    for node in range(adjacency.num_nodes):
        start, stop = adjacency.row_pointer[node : node + 2].tolist()
        for sender in adjacency.column[start:stop].tolist():
            matrix[node, sender] += 1
    return matrix


def tensors(graph: Graph) -> dict[str, torch.Tensor]:
    backward = graph.adjacency.transposed or graph.adjacency
    return {
        "features": graph.features,
        "labels": graph.labels,
        "train_index": graph.train_index,
        "validation_index": graph.validation_index,
        "test_index": graph.test_index,
        "row_pointer": graph.adjacency.row_pointer,
        "column": graph.adjacency.column,
        "transposed_row_pointer": backward.row_pointer,
        "transposed_column": backward.column,
    }


def assert_same(one: Graph, other: Graph) -> None:
    assert (one.name, one.num_classes) == (other.name, other.num_classes)
    assert one.adjacency.symmetric == other.adjacency.symmetric
    for name, tensor in tensors(one).items():
        assert tensor.dtype == tensors(other)[name].dtype, name
        assert torch.equal(tensor, tensors(other)[name]), name


def mean_of_neighbors(graph: Graph, x: np.ndarray) -> np.ndarray:
    row_pointer, column = graph.adjacency.row_pointer, graph.adjacency.column
    rows = sp.csr_array(
        (np.ones(len(column)), column, row_pointer),
        shape=(graph.num_nodes, graph.num_nodes),
    )
    return (rows @ x) / graph.adjacency.degree.clamp(min=1).numpy()[:, None]


@given(edge_lists(), st.booleans())
def test_adjacency_is_the_matrix_of_its_edges(edges, symmetrize):
    """Repeats count once; row = receiver; the transpose is kept or is the same."""
    num_nodes, source, target = edges
    adjacency = adjacency_from_edges(source, target, num_nodes, symmetrize=symmetrize)
    expected = np.zeros((num_nodes, num_nodes), dtype=int)
    expected[target, source] = 1
    if symmetrize:
        expected = np.maximum(expected, expected.T)
    np.testing.assert_array_equal(dense(adjacency), expected)
    assert adjacency.symmetric == (expected == expected.T).all()
    backward = adjacency.transposed or adjacency
    np.testing.assert_array_equal(dense(backward), expected.T)
    np.testing.assert_array_equal(adjacency.degree, expected.sum(axis=1))
    assert adjacency.num_entries == expected.sum() == adjacency.degree.sum()


@given(edge_lists())
def test_adjacency_ignores_the_order_of_edges(edges):
    num_nodes, source, target = edges
    order = np.random.default_rng(0).permutation(len(source))
    one = adjacency_from_edges(source, target, num_nodes, symmetrize=False)
    other = adjacency_from_edges(
        source[order], target[order], num_nodes, symmetrize=False
    )
    assert torch.equal(one.column, other.column)
    assert torch.equal(one.row_pointer, other.row_pointer)


def test_adjacency_counts_the_bytes_of_what_it_keeps():
    """int32: four bytes a pointer and an entry, twice when the transpose is kept."""
    edges = np.array([0, 0, 1]), np.array([1, 2, 2])
    assert adjacency_from_edges(*edges, 3).nbytes == 4 * (4 + 6)
    directed = adjacency_from_edges(*edges, 3, symmetrize=False)
    assert directed.nbytes == 2 * 4 * (4 + 3)
    assert directed.to("cpu").transposed.num_entries == 3


@pytest.mark.parametrize("node", [-1, 3])
def test_adjacency_refuses_unknown_nodes(node):
    with pytest.raises(ValueError, match=rf"target must lie in 0 \.\. 2 .*got {node}"):
        adjacency_from_edges(np.array([0]), np.array([node]), 3, symmetrize=False)


def test_adjacency_refuses_unequal_lists():
    with pytest.raises(ValueError, match=r"equal length, got shapes \(1,\) and \(2,\)"):
        adjacency_from_edges(np.array([0]), np.array([1, 2]), 3, symmetrize=False)


@given(small_graphs())
def test_a_graph_survives_its_file(tmp_path_factory, graph):
    path = tmp_path_factory.mktemp("graphs") / "graph.npz"
    write_graph(graph, path)
    assert_same(read_graph(path), graph)


def test_equal_graphs_have_equal_bytes_and_leave_nothing_else(tmp_path):
    for name in ("one", "two"):
        write_graph(synthetic_graph(), tmp_path / "new" / f"{name}.npz")
    one, two = sorted((tmp_path / "new").iterdir())
    assert one.read_bytes() == two.read_bytes()


def test_symmetric_graphs_are_stored_once_and_sparse_features_sparse(tmp_path):
    """A file holds the smaller form: 8 bytes a nonzero and 4 a row, or 4 a value."""
    graph = synthetic_graph(num_nodes=1000, num_edges=4000, num_features=100)
    mask = torch.rand(1000, 100, generator=torch.Generator().manual_seed(0))
    sparse = replace(graph, features=graph.features * (mask < 0.02))
    sizes = {}
    for name, case in {"dense": graph, "sparse": sparse}.items():
        write_graph(case, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as file:
            arrays = dict(file)
        assert not any(key.startswith("transposed") for key in arrays)
        sizes[name] = sum(
            array.nbytes for key, array in arrays.items() if "features_" in key[:9]
        )
        assert ("features" in arrays) == (name == "dense")
        assert_same(read_graph(tmp_path / f"{name}.npz"), case)
    shape = 16
    assert sizes["sparse"] == 8 * sparse.features.count_nonzero() + 4 * 1001 + shape


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "graph.npz"
    write_graph(synthetic_graph(seed=1), path)
    before = path.read_bytes()

    def disk_full(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(graphs.np, "savez", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_graph(synthetic_graph(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_an_altered_byte_is_noticed_or_harmless(tmp_path_factory, position, flip):
    """Harmless: dates, rights and other remarks of the archive that nobody reads."""
    path = tmp_path_factory.mktemp("damage") / "graph.npz"
    graph = synthetic_graph(num_nodes=20, num_edges=40, num_features=2)
    write_graph(graph, path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    try:
        damaged = read_graph(path)
    except ValueError:
        with pytest.raises(ValueError, match="Delete it and run snakemake again"):
            read_graph(path)
    else:
        assert_same(damaged, graph)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "graph.npz"
    write_graph(synthetic_graph(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"graph\.npz is not a sound prepared graph"):
        read_graph(path)


def test_a_file_that_lacks_an_array_says_which(tmp_path):
    np.savez(tmp_path / "graph.npz", features=np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="expected an array row_pointer, got"):
        read_graph(tmp_path / "graph.npz")


def test_pickled_objects_in_a_file_are_not_loaded(tmp_path):
    path = tmp_path / "graph.npz"
    write_graph(synthetic_graph(), path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"labels": np.array([print], dtype=object)}))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_graph(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_graph(tmp_path / "graph.npz")


def with_rows(graph: Graph, row_pointer=None, column=None) -> Graph:
    changes = {"row_pointer": row_pointer, "column": column}
    kept = {name: value for name, value in changes.items() if value is not None}
    return replace(graph, adjacency=replace(graph.adjacency, **kept))


SOUND = synthetic_graph(num_nodes=20, num_edges=60)
POINTER, COLUMN = SOUND.adjacency.row_pointer, SOUND.adjacency.column
LOOP = adjacency_from_edges(np.array([0]), np.array([1]), 20, symmetrize=False)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (replace(SOUND, features=SOUND.features.double()), "features: expected torch"),
        (replace(SOUND, features=SOUND.features * torch.nan), "features: expected fin"),
        (replace(SOUND, features=SOUND.features[:-1]), "labels: expected 19 nodes"),
        (replace(SOUND, labels=SOUND.labels.int()), "labels: expected torch.int64"),
        (replace(SOUND, num_classes=3), r"labels: expected values in 0 \.\. 2, got"),
        (replace(SOUND, test_index=SOUND.train_index), "each node once"),
        (replace(SOUND, test_index=torch.tensor([20])), "test_index: expected values"),
        (with_rows(SOUND, column=COLUMN.long()), "column: expected a list of int32"),
        (with_rows(SOUND, column=COLUMN + 1), r"column: expected nodes in 0 \.\. 19"),
        (with_rows(SOUND, column=COLUMN.flip(0)), "column: expected nodes that incr"),
        (with_rows(SOUND, row_pointer=POINTER[:-1]), "row_pointer: expected 20 nodes"),
        (with_rows(SOUND, row_pointer=POINTER + 1), "row_pointer: expected to rise"),
        (replace(SOUND, adjacency=replace(LOOP, transposed=None)), "a symmetric one"),
        (replace(SOUND, adjacency=replace(LOOP, transposed=LOOP)), "its transpose"),
    ],
)
def test_a_graph_that_contradicts_itself_is_not_written(tmp_path, graph, message):
    with pytest.raises(ValueError, match=message):
        write_graph(graph, tmp_path / "graph.npz")
    assert not list(tmp_path.iterdir())


def test_graph_counts_every_byte():
    expected = 4 * 20 * 16 + 8 * 20 + 8 * 20 + 4 * (21 + 60)  # x, y, split, adjacency
    assert SOUND.nbytes == SOUND.to("cpu").nbytes == expected


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(0, 100))
def test_stratified_split_keeps_shares(labels, seed):
    """Each node once; in total and per class within the rounding of runs of five.

    A run of m nodes in the pattern TTTVX holds m/5 of V to within 1, and 3m/5 of T
    to within 6/5.
    """
    labels = np.array(labels, dtype=np.int64)
    split = stratified_split(labels, seed)
    used = torch.cat(list(split.values()))
    assert sorted(used.tolist()) == list(range(len(labels)))
    shares = {"train_index": 3 / 5, "validation_index": 1 / 5, "test_index": 1 / 5}
    for name, share in shares.items():
        for members in [labels >= 0, *(labels == k for k in range(5))]:
            count = members[split[name]].sum()
            assert abs(count - share * members.sum()) <= 6 / 5 + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    num_nodes=st.integers(1, 60),
    density=st.floats(0, 1),
    num_classes=st.integers(1, 5),
    num_features=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_synthetic_counts_are_exact(
    num_nodes, density, num_classes, num_features, seed
):
    """Up to half of all pairs: no loop, no repeat, every class, the same every time."""
    num_classes = min(num_classes, num_nodes)
    num_edges = 2 * int(density * (num_nodes * (num_nodes - 1) // 4))
    arguments = (num_nodes, num_edges, num_features, num_classes)
    graph = synthetic_graph(*arguments, seed=seed)
    graphs.check_graph(graph)
    assert graph.features.shape == (num_nodes, num_features)
    assert graph.adjacency.num_entries == num_edges
    assert graph.adjacency.symmetric
    assert not dense(graph.adjacency).diagonal().any()
    assert len(graph.labels.unique()) == graph.num_classes == num_classes
    assert_same(graph, synthetic_graph(*arguments, seed=seed))


def test_synthetic_seeds_differ():
    one, other = synthetic_graph(seed=0), synthetic_graph(seed=1)
    assert not torch.equal(one.adjacency.column, other.adjacency.column)
    assert not torch.equal(one.features, other.features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_edges": 2401}, "must be even, got 2401"),
        ({"num_nodes": 10, "num_edges": 46}, r"0 to 22 undirected edges .* got 23"),
        ({"num_classes": 301}, r"num_classes must be 1 \.\. 300, got 301"),
        ({"num_train": 10}, "give both or neither, got 10 and None"),
        ({"num_train": 200, "num_validation": 101}, r"0 \.\. 300 .* got 200 \+ 101"),
    ],
)
def test_synthetic_refuses_the_impossible(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_graph(**arguments)


@pytest.mark.parametrize(
    ("make", "counts", "split"),
    [
        (arxiv_shape, (169_343, 2_315_598, 128, 40), (90_941, 29_799, 48_603)),
        (flickr_shape, (89_250, 899_756, 500, 7), (44_625, 22_312, 22_313)),
    ],
)
def test_published_counts(make, counts, split):
    """Counts exact; degrees fall as a power law; the graph is sound."""
    graph = make()
    adjacency = graph.adjacency
    assert counts == (
        graph.num_nodes,
        adjacency.num_entries,
        graph.num_features,
        graph.num_classes,
    )
    indices = graph.train_index, graph.validation_index, graph.test_index
    assert split == tuple(len(index) for index in indices)
    graphs.check_graph(graph)
    assert graph.name in EMBEDDED_GRAPHS

    # The share of nodes above a degree t falls as t ** -TAIL: from t = 4 to 16 times
    # the mean by 4 ** -TAIL. Both counts are Poisson-like, so allow 5 deviations.
    degree = adjacency.degree.double()
    above, far_above = (int((degree > k * degree.mean()).sum()) for k in (4, 16))
    expected = above * 4**-TAIL
    assert abs(far_above - expected) <= 5 * np.sqrt(expected + above * 16**-TAIL)
    assert degree.median() < degree.mean() / 1.5 < degree.max() / 100


def test_digits_are_joined_to_their_nearest():
    """Oracle: all pixels' distances. Nobody nearer than the tenth is left out."""
    graph = digits_graph()
    assert (graph.num_nodes, graph.num_features, graph.num_classes) == (1797, 64, 10)
    assert [len(i) for i in (graph.train_index, graph.test_index)] == [1079, 359]
    assert 0 <= graph.features.min() < graph.features.max() == 1
    graphs.check_graph(graph)
    distance = torch.cdist(graph.features.double(), graph.features.double())
    distance = (distance * 16).square().round().fill_diagonal_(torch.inf)
    tenth = distance.kthvalue(DIGITS_NEIGHBORS, dim=1).values
    joined = torch.from_numpy(dense(graph.adjacency)).bool()
    nearer = distance < tenth[:, None]
    assert (joined | ~(nearer | nearer.T)).all()
    reach = torch.maximum(tenth[:, None], tenth[None, :])
    assert (distance[joined] <= reach[joined]).all()
    assert graph.adjacency.degree.min() >= DIGITS_NEIGHBORS


@pytest.mark.parametrize(
    "graph",
    [
        digits_graph(),
        synthetic_graph(num_nodes=2000, num_edges=20_000, num_classes=6),
    ],
    ids=["digits", "synthetic"],
)
def test_neighbors_help(graph):
    """A linear classifier gains from the neighbours' mean, and is not perfect.

    Paired: of the nodes that only one of the two gets right, more than half by 2
    standard errors are those of the classifier that sees neighbours.
    """
    own = graph.features.numpy()
    near = np.hstack([own, mean_of_neighbors(graph, own)])
    train, labels = graph.train_index.numpy(), graph.labels.numpy()
    unseen = torch.cat([graph.validation_index, graph.test_index]).numpy()
    alone, helped = (
        LogisticRegression(max_iter=300).fit(x[train], labels[train]).predict(x[unseen])
        == labels[unseen]
        for x in (own, near)
    )
    gained, lost = (helped & ~alone).sum(), (alone & ~helped).sum()
    assert gained - lost > 2 * np.sqrt(gained + lost)
    assert not helped.all()


def test_file_is_a_plain_archive(tmp_path):
    """Anyone can open it: stored .npy members and nothing else."""
    write_graph(SOUND, tmp_path / "graph.npz")
    with zipfile.ZipFile(tmp_path / "graph.npz") as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
