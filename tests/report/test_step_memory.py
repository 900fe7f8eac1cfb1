"""The picture of a step's memory: what stands where, and that it can be drawn."""

import pytest
import torch

from pipeline_src.compression.memory.report import memory_report
from pipeline_src.report.drawing.rendering import render
from pipeline_src.report.drawing.style import COLORS
from pipeline_src.report.figures.step_memory import (
    NOT_KEPT,
    OTHER,
    plot_step_memory,
)

GIB = 2**30


def stretch(method, index, phase, **alive):
    return [
        {
            **{"method": method, "index": index, "phase": phase},
            **{"module": "m", "operation": "o", "made_by": maker, "nbytes": nbytes},
        }
        for maker, nbytes in alive.items()
    ]


def made_up():
    """Two methods of different lengths; more operations than there are colours."""
    kept = {f"operation {number}": (9 - number) * GIB for number in range(8)}
    return [
        *stretch("eager", 0, "forward", **kept),
        *stretch("eager", 1, "backward", **kept, gradients=2 * GIB),
        *stretch("eager", 2, "update", gradients=GIB),
        *stretch("compress", 0, "forward", linear=GIB),
        *stretch("compress", 1, "backward", gradients=GIB, **{"inside kernels": GIB}),
    ]


def test_bars_add_up_and_fill_the_axis():
    frame = plot_step_memory(made_up()).data
    for method, length in (("eager", 3), ("compress", 2)):
        bars = frame[frame["method"] == method]
        assert bars["share"].nunique() == length
        assert set(bars["width"]) == {1 / length}
    assert frame["memory"].sum() == sum(row["nbytes"] for row in made_up()) / GIB


def test_the_largest_operations_have_colours_and_the_rest_share_one():
    frame = plot_step_memory(made_up()).data
    makers = [*frame["made_by"].cat.categories]
    assert makers[:3] == [*reversed(NOT_KEPT), OTHER]
    assert makers[-1] == "operation 0"  # the largest lies at the bottom
    assert len(makers) - len(NOT_KEPT) <= len(COLORS) - 1  # the last one is a grey


def test_phases_are_parted_and_peaks_named():
    plot = plot_step_memory(made_up())
    lines, labels = (layer._data for layer in plot.layers[1:3])
    starts = {(row.method, row.phase): row.start for row in lines.itertuples()}
    assert starts == pytest.approx(
        {
            ("eager", "backward"): 1 / 3,
            ("eager", "update"): 2 / 3,
            ("compress", "backward"): 1 / 2,
        }
    )
    assert [*labels["label"]] == ["peak 46 GiB", "peak 2 GiB"]


def test_it_is_drawn_and_says_where_there_is_nothing():
    assert render(plot_step_memory(made_up()), "svg").startswith(b"<?xml")
    assert b"not measured" in render(plot_step_memory([]), "svg")


def test_the_timeline_of_a_report_is_what_it_takes():
    linear = torch.nn.Linear(8, 8)
    report = memory_report(linear, torch.randn(64, 8))
    frame = plot_step_memory(report.timeline()).data
    bars = frame.groupby(["method", "index"], observed=True)["memory"].sum()
    assert bars.max() == report.before.peak / 2**20
