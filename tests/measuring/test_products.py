"""Training at ogbn-products' shape: the graph it draws, the limit, the table."""

import multiprocessing

import numpy as np
import pytest

from pipeline_src.graphs.graph import check_graph
from pipeline_src.graphs.sizes import PRODUCTS
from pipeline_src.measuring import large_graph, products
from pipeline_src.measuring.byte_books import saved_bytes
from pipeline_src.measuring.large_graph import (
    ARRAYS,
    draw_graph,
    read_mapped,
    scaled_products,
)
from pipeline_src.measuring.products import COLUMNS, METHODS, MODEL, TRAINING

LEAN = METHODS[0]
# An odd number of nodes, so that no block ends evenly.
SIZES = scaled_products(1501)
TINY = 1e-3  # GiB, far below what an interpreter holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    drawn = tmp_path_factory.mktemp("drawn")
    draw_graph(drawn, SIZES)
    return drawn


@pytest.fixture(scope="module")
def graph(folder):
    return read_mapped(folder, SIZES.num_classes)


def test_the_graph_is_symmetric_sorted_and_complete(graph):
    check_graph(graph)  # each row sorted, each entry once and with its counterpart
    assert graph.adjacency.symmetric
    asked = SIZES.num_entries
    assert graph.sizes == type(SIZES)(
        **{**vars(SIZES), "num_entries": graph.adjacency.num_entries}
    )
    assert asked / 2 < graph.adjacency.num_entries <= asked


def test_the_graph_has_no_loops_and_a_heavy_tail(graph):
    degree = graph.adjacency.degree
    rows = np.repeat(np.arange(graph.num_nodes), degree.numpy())
    assert not (rows == graph.adjacency.column.numpy()).any()
    # A node of mean degree m drawn evenly has m +- sqrt(m); 8 of them is no chance.
    mean = degree.double().mean()
    assert degree.max() > mean + 8 * mean.sqrt()


def test_blocks_change_only_how_the_generator_is_called(folder, tmp_path, monkeypatch):
    """Rows and keys end where blocks end: nothing may be lost or shifted there."""
    monkeypatch.setattr(large_graph, "BLOCK", 1000)
    draw_graph(tmp_path, SIZES)
    graph = read_mapped(tmp_path, SIZES.num_classes)
    check_graph(graph)
    features = graph.features
    assert (features.std(dim=1) > 0.5).all()  # no row was left at zero


def test_the_seed_decides_the_graph(folder, tmp_path):
    draw_graph(tmp_path / "again", SIZES)
    draw_graph(tmp_path / "other", SIZES, seed=1)
    for name in ARRAYS:
        first, again, other = (
            np.load(place / f"{name}.npy")
            for place in (folder, tmp_path / "again", tmp_path / "other")
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_a_drawn_graph_is_not_drawn_again_but_another_is(tmp_path):
    draw_graph(tmp_path, SIZES)
    before = (tmp_path / "column.npy").stat().st_mtime_ns
    draw_graph(tmp_path, SIZES)
    assert (tmp_path / "column.npy").stat().st_mtime_ns == before
    draw_graph(tmp_path, SIZES, seed=1)
    assert (tmp_path / "column.npy").stat().st_mtime_ns != before


def test_what_is_mapped_is_what_was_drawn(folder, graph):
    adjacency = graph.adjacency
    mapped = {
        **vars(graph),
        "row_pointer": adjacency.row_pointer,
        "column": adjacency.column,
    }
    for name in ARRAYS:
        np.testing.assert_array_equal(mapped[name], np.load(folder / f"{name}.npy"))
    before = graph.features[0, 0].item()
    graph.features[0, 0] = before + 1  # in memory only
    assert np.load(folder / "features.npy")[0, 0] == before
    graph.features[0, 0] = before


def test_full_size_is_ogbn_products():
    assert scaled_products(PRODUCTS.num_nodes) == PRODUCTS


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
def test_measured_bytes_are_those_of_the_books(folder, graph, method, monkeypatch):
    monkeypatch.setattr(products, "COMPILING_COUNTS", 0)  # one step is enough
    found = products.measure(folder, SIZES.num_classes, method)
    booked = saved_bytes(MODEL, method, graph.sizes, TRAINING.loss)
    assert found["saved [GiB]"] * products.GIB == booked
    assert found["step peak [GiB]"] > found["saved [GiB]"]
    assert found["data [GiB]"] * products.GIB >= graph.nbytes


def test_a_limit_kills_and_leaves_a_row(tmp_path):
    table = tmp_path / "table.csv"
    products.add_rows(table, tmp_path, [LEAN], SIZES, TINY)
    (row,) = products._read(table)
    assert row["fits"] == "does not fit"
    assert float(row["max resident [GiB]"]) > TINY
    assert row["saved [GiB]"] == row["step [s]"] == ""
    assert not multiprocessing.active_children()


def test_rows_that_exist_are_not_measured_again(tmp_path, monkeypatch):
    table, calls = tmp_path / "table.csv", []

    def counted(limit, folder, num_classes, method):
        calls.append((limit, method.name))
        return {"fits": "yes", "step [s]": float(len(calls))}

    monkeypatch.setattr(products, "measure_under", counted)
    products.add_rows(table, tmp_path, METHODS[:1], SIZES, 2.0)
    products.add_rows(table, tmp_path, METHODS[:2], SIZES, 2.0)
    products.add_rows(table, tmp_path, METHODS[:1], SIZES, 3.0)
    gib = products.GIB
    names = [method.name for method in METHODS]
    assert calls == [(2 * gib, names[0]), (2 * gib, names[1]), (3 * gib, names[0])]
    rows = products._read(table)
    assert [row["step [s]"] for row in rows] == ["1.000", "2.000", "3.000"]
    assert tuple(rows[0]) == COLUMNS


def _fails(*_):
    raise ValueError("broken")


def _runs_out(*_):
    raise MemoryError


@pytest.mark.parametrize(
    ("fault", "expected"), [(_runs_out, {"out of memory": True}), (_fails, None)]
)
def test_only_want_of_memory_is_a_result(tmp_path, monkeypatch, fault, expected):
    monkeypatch.setattr(products, "measure", fault)
    path = tmp_path / "result.json"
    if expected is None:
        with pytest.raises(ValueError, match="broken"):
            products._measure_into(path, tmp_path, 2, LEAN)
        assert not path.exists()
    else:
        products._measure_into(path, tmp_path, 2, LEAN)
        assert path.read_text(encoding="utf-8") == '{"out of memory": true}'
