"""What a memory report says, and to whom."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

from pipeline_src.compression import sources
from pipeline_src.compression.attachment import attachment_of, compress
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from pipeline_src.compression.edges import reducing, rows
from pipeline_src.compression.memory import shortened
from pipeline_src.compression.memory.page import Table, html, short, size, text
from pipeline_src.compression.memory.report import SIZES, memory_report
from pipeline_src.compression.memory.timeline import GRADIENTS
from pipeline_src.quant import rectified
from pipeline_src.training.meters import allocated_bytes

NODES, EDGES, FEATURES, HIDDEN, CLASSES = 300, 1_500, 16, 32, 5
WIDE = (2_449_029, 123_718_280)  # nodes and edges of ogbn-products


def sage():
    torch.manual_seed(0)
    return pyg.GraphSAGE(FEATURES, HIDDEN, 2, CLASSES, 0.5, norm="batch")


def inputs():
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(NODES, (2, EDGES), generator=generator)
    return torch.randn(NODES, FEATURES, generator=generator), edges


@pytest.fixture(scope="module")
def report():
    return memory_report(sage(), *inputs(), fake=False)


def test_rows_add_up_to_what_is_saved(report):
    assert sum(row.before for row in report.rows()) == report.before.saved
    assert sum(row.after for row in report.rows()) == report.after.saved


def test_compress_keeps_less(report):
    assert report.after.saved < report.before.saved / 4
    assert report.after.resident == report.before.resident


def test_bits_are_those_of_the_type(report):
    """FP32 nodes features: 32 bits a value, where rounding up is small."""
    (row,) = [row for row in report.rows() if row.operation == "batch_norm"]
    (relu,) = [row for row in report.rows() if row.operation == "relu"]
    assert relu.elements == NODES * HIDDEN
    assert relu.before == 4 * relu.elements
    assert row.module == "norms.0.module"


@pytest.mark.parametrize("fake", [True, False])
def test_a_compressed_model_gives_the_same_report(report, fake):
    """Which of the two the user has makes no difference, nor do fakes."""
    model = compress(sage())
    found = memory_report(model, *inputs(), fake=fake)
    for one, other in ((found.before, report.before), (found.after, report.after)):
        for name in ("saved", "peak", "model", "data", "state"):
            assert getattr(one, name) == getattr(other, name), name
    assert found.rows() == report.rows()
    assert attachment_of(model) is not None


def test_the_config_is_that_of_compress(report):
    eight = memory_report(sage(), *inputs(), config=CompressionConfig(bits=8))
    assert eight.before.saved == report.before.saved
    assert report.after.saved < eight.after.saved < report.before.saved


def test_what_is_left_alone_is_listed_with_its_reason():
    model = nn.Sequential(nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 64))
    config = CompressionConfig(choices=((Part(operation="softplus"), Keep()),))
    found = memory_report(model, torch.randn(500, 64), config=config)
    assert [(note.operation, note.nbytes) for note in found.notes] == [
        ("softplus", 500 * 64 * 4)
    ]
    assert "asked to be kept" in str(found)


def test_it_fits_where_what_is_needed_is_there(report):
    for step in (report.before, report.after):
        assert step.needed == step.peak + step.model + step.data + step.state
    assert report.fits() == dict.fromkeys(SIZES, (True, True))


def test_a_graph_larger_than_this_machine_takes_shapes_alone():
    nodes, edges = WIDE
    x = torch.empty(nodes, FEATURES, device="meta")
    index = torch.empty(2, edges, dtype=torch.int64, device="meta")
    model = pyg.SAGEConv(FEATURES, 4)
    found = memory_report(model, x, index, config=CompressionConfig(min_numel=2**40))
    messages = edges * FEATURES * 4
    sizes = (nodes * FEATURES * 4, edges * 16)
    assert found.before.data == sum(map(allocated_bytes, sizes))
    assert found.before.peak > messages
    assert found.fits()[8] == (False, True)  # messages are never whole


def test_lines_are_at_most_a_hundred_columns(report):
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("fits in 8 GiB") for line in lines)
    for name in ("saved", "step peak", "resident"):
        assert any(line.startswith(name) for line in lines)


def test_notebooks_get_a_table(report):
    found = report._repr_html_()
    assert found.count("<table>") == found.count("</table>") >= 2
    assert "norms.0.module" in found


def test_names_are_no_markup():
    found = html("<b>", [Table("&", [["<i>", "n"], ["<u>", "1"]], names=1)])
    assert not {"<b>", "<i>", "<u>"} & {found[i : i + 3] for i in range(len(found))}


def test_columns_are_aligned():
    rows = [["name", "n"], ["a", "1"], ["bc", "100"]]
    assert text("T", [Table("x", rows, names=1)]).splitlines() == [
        *("T", "", "x:", ""),
        *("name    n", "----  ---", "a       1", "bc    100"),
    ]
    assert short("a" * 50).endswith("a")
    assert len(short("a" * 50)) == 34
    assert size(2**20) == "1.00 MiB"


def test_the_timeline_reaches_the_peak(report):
    for method, step in (("eager", report.before), ("compress", report.after)):
        heights = {}
        for row in report.timeline():
            if row["method"] == method:
                nbytes = heights.get(row["index"], 0) + row["nbytes"]
                heights[row["index"]] = nbytes
        assert max(heights.values()) == step.peak


def test_autograd_lets_go_what_it_has_used(report):
    """At the end of backward gradients are alone, and the loss is."""
    rows = [row for row in report.timeline() if row["method"] == "eager"]
    end = max(row["index"] for row in rows if row["phase"] == "backward")
    makers = {row["made_by"] for row in rows if row["index"] == end}
    assert makers == {GRADIENTS, "mean"}


def test_fewer_runs_change_little(monkeypatch):
    """Against runs as small as in a real step."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x = torch.empty(2**14, 64, device="meta")
    for module in (sources, rectified):
        monkeypatch.setattr(module, "RUN_VALUES", 2**14)
    monkeypatch.setattr(shortened, "MOST_RUNS", 16)
    found = memory_report(model, x).after
    assert rectified.RUN_VALUES == 2**14
    assert sources.RUN_VALUES == 2**14
    monkeypatch.setattr(shortened, "MOST_RUNS", 2**20)
    exact = memory_report(model, x).after
    assert found.saved == exact.saved
    assert found.peak == pytest.approx(exact.peak, rel=0.02)
    assert len(found.moments) < len(exact.moments) / 3


@pytest.mark.parametrize("layer", [pyg.GATConv, pyg.SAGEConv])
def test_ranges_that_are_left_out_change_nothing(layer, monkeypatch):
    """The step itself takes them all; there are dozens."""
    monkeypatch.setattr(reducing, "RANGE_VALUES", 2**11)
    generator = torch.Generator().manual_seed(2)
    nodes, edges = 2_000, 20_000
    index = torch.randint(nodes, (2, edges), generator=generator)
    index[1, ::4] = 7  # a hub is a range of its own, and the largest
    x = torch.randn(nodes, 8, generator=generator)
    model = pyg.Sequential(
        "x, e", [(nn.Linear(8, 16), "x -> x"), (layer(16, 8), "x, e -> x")]
    )
    config = CompressionConfig(min_numel=2**20)
    found = memory_report(model, x, index, config=config).after
    exact = memory_report(model, x, index, config=config, fake=False).after
    assert (found.saved, found.state) == (exact.saved, exact.state)
    assert found.peak == pytest.approx(exact.peak, rel=0.01)
    assert len(found.moments) < len(exact.moments)


def test_edges_without_values_are_spread_evenly(monkeypatch):
    """A graph whose nodes have as many edges each is told by its shapes alone."""
    nodes, each = 1_000, 8
    assert nodes * each * FEATURES > rows.MIN_EDGE_VALUES
    monkeypatch.setattr(reducing, "RANGE_VALUES", 2**14)
    generator = torch.Generator().manual_seed(3)
    receivers = torch.arange(nodes).repeat(each)  # not in order, as on "meta"
    senders = torch.randint(nodes, (nodes * each,), generator=generator)
    index, x = torch.stack([senders, receivers]), torch.randn(nodes, FEATURES)
    model = compress(pyg.SAGEConv(FEATURES, HIDDEN))
    found = memory_report(model, x, index.to("meta")).after
    exact = memory_report(model, x, index).after
    for name in ("saved", "peak", "state"):
        assert getattr(found, name) == getattr(exact, name), name


def test_nothing_is_touched():
    model, given = sage(), inputs()
    before = copy.deepcopy(model.state_dict())
    memory_report(model, *given)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert attachment_of(model) is None
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match=r"call model\.train\(\) before"):
        memory_report(sage().eval(), *inputs())
    with pytest.raises(ValueError, match="or leave config out"):
        memory_report(compress(sage()), *inputs(), config=CompressionConfig())
    frozen = sage().requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="give a loss"):
        memory_report(frozen, *inputs())
