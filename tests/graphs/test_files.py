"""A graph survives its file; a file that is not sound is refused, and runs nothing."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_graphs import assert_same, small_graphs

from pipeline_src.graphs import files
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.files import read_graph, write_graph


# Of five nodes in a row one validates and one tests; no split may be empty.
@given(small_graphs().filter(lambda graph: graph.num_nodes >= 5))
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

    monkeypatch.setattr(files.np, "savez", disk_full)
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


def test_an_altered_shape_is_noticed(tmp_path):
    """NumPy alone would read fewer bytes, and so never reach the checksum's place."""
    path = tmp_path / "graph.npz"
    write_graph(synthetic_graph(num_nodes=20, num_edges=40, num_features=2), path)
    content = path.read_bytes()
    assert content.count(b"(20, 2)") == 1
    path.write_bytes(content.replace(b"(20, 2)", b"(20, 1)"))
    with pytest.raises(ValueError, match=r"features\.npy does not match its checksum"):
        read_graph(path)


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


@pytest.mark.parametrize(
    "shape", [b"(99999999, 9999999999)", b"(2**62, 2)", b"(-20, -2)"]
)
def test_a_made_up_shape_is_refused(tmp_path, shape):
    """With a sound checksum: NumPy would ask for more memory than there is."""
    path = tmp_path / "graph.npz"
    write_graph(synthetic_graph(num_nodes=20, num_edges=40, num_features=2), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = members["features.npy"]
    start = content.index(b"(20, 2)")
    longer = content[:start] + shape + content[start + len(b"(20, 2)") :]
    surplus = len(shape) - len(b"(20, 2)")
    members["features.npy"] = longer.replace(b" " * surplus + b"\n", b"\n", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    with pytest.raises(ValueError, match="is not a sound prepared graph"):
        read_graph(path)


def test_a_file_that_unpacks_to_more_than_any_graph_is_not_unpacked(
    tmp_path, monkeypatch
):
    path = tmp_path / "graph.npz"
    np.savez_compressed(path, features=np.zeros((1000, 1000), np.float32))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1000000 bytes, got 4000128"):
        read_graph(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_graph(tmp_path / "graph.npz")


def test_file_is_a_plain_archive(tmp_path):
    """Anyone can open it: stored .npy members and nothing else."""
    write_graph(synthetic_graph(), tmp_path / "graph.npz")
    with zipfile.ZipFile(tmp_path / "graph.npz") as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
