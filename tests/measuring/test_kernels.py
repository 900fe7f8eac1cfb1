"""The benchmark on a tensor too small for its seconds to mean anything."""

import importlib.util
import itertools
import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

from pipeline_src.measuring import rivals
from pipeline_src.measuring.gpu import clock, kernel_calls
from pipeline_src.measuring.gpu.kernel_calls import IMPLEMENTATIONS
from pipeline_src.measuring.kernels import benchmark_kernels
from pipeline_src.measuring.rivals import Kernels, rival_kernels
from pipeline_src.quant.blockwise import count_blocks
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.report.tables.kernels import kernel_table

BITS, BLOCK_SIZES = (2, 4), (16, 64)


def benchmark(**changes):
    plan = {"warmup": 1, "repeats": 3, "device": "cpu", "compile": "false"}
    return benchmark_kernels(
        50, 16, BITS, BLOCK_SIZES, threads=1, **{**plan, **changes}
    )


@pytest.fixture
def without_rivals(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda package: None)


@pytest.fixture
def ticking(monkeypatch):
    """A clock that shows how many calls it has timed before."""
    ticks = itertools.count()

    def measure_time(call, device):
        call()
        return float(next(ticks))

    monkeypatch.setattr(clock, "measure_time", measure_time)


def made_up(copy, clone, kernel, kept=25.0, values=100.0):
    """A record of compress, 2 bits, block size 16, by the plain kernel alone."""
    grid = ("bits", "block_size")
    return xr.Dataset(
        {
            "kernel_time": (
                ("implementation", "operation", *grid, "repeat"),
                np.reshape(kernel, (1, 1, 1, 1, -1)),
            ),
            "move_time": (
                ("move", *grid, "repeat"),
                np.reshape([copy, clone], (2, 1, 1, -1)),
            ),
            "kept_memory": (("implementation", *grid), [[[kept]]]),
            "value_memory": ((), values),
        },
        {
            "implementation": ["plain"],
            "operation": ["compress"],
            "move": ["copy", "clone"],
            "bits": [2],
            "block_size": [16],
        },
    )


@pytest.mark.usefixtures("without_rivals")
def test_the_record_times_what_exists_and_nothing_else(tmp_path):
    """Not compiled and no other package: the plain kernels alone have numbers."""
    record = benchmark()
    assert dict(record.sizes) == {
        "implementation": len(IMPLEMENTATIONS),
        "operation": 2,
        "move": 2,
        "bits": 2,
        "block_size": 2,
        "repeat": 3,
    }
    plain = record.sel(implementation="plain")
    assert (plain["kernel_time"] > 0).all()
    assert (record["move_time"] > 0).all()
    others = record.drop_sel(implementation="plain")
    assert others["kernel_time"].isnull().all()
    assert others["kept_memory"].isnull().all()
    assert all(
        {"units", "long_name"} <= set(variable.attrs)
        for variable in record.variables.values()
    )
    assert json.loads(record.attrs["provenance"])["device"] == "cpu"
    write_dataset(record, tmp_path / "kernels.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "kernels.nc"), record)


@pytest.mark.usefixtures("without_rivals")
def test_bytes_are_those_of_codes_and_of_metadata():
    """A value takes bits / 8, a block two bfloat16 numbers; padding is counted."""
    record = benchmark()
    assert float(record["value_memory"]) == 50 * 16 * 4
    for bits, size in itertools.product(BITS, BLOCK_SIZES):
        kept = record["kept_memory"].sel(
            implementation="plain", bits=bits, block_size=size
        )
        blocks = count_blocks(50 * 16, bits, size)
        assert float(kept) == blocks * (size * bits / 8 + 2 * 2)


@pytest.mark.usefixtures("without_rivals", "ticking")
def test_operations_take_turns_and_warm_up_before_the_clock_counts():
    """A round is copy, clone, compress, decompress for each of four settings."""
    record = benchmark(warmup=4)
    rounds = 16 * (4 + np.arange(3))
    start = np.arange(4).reshape(2, 2, 1) * 4 + rounds
    moves, plain = (
        record["move_time"],
        record["kernel_time"].sel(implementation="plain"),
    )
    np.testing.assert_array_equal(moves.sel(move="copy"), start)
    np.testing.assert_array_equal(moves.sel(move="clone"), start + 1)
    np.testing.assert_array_equal(plain.sel(operation="compress"), start + 2)
    np.testing.assert_array_equal(plain.sel(operation="decompress"), start + 3)


def test_ratios_are_those_of_the_medians():
    """Medians 3, 6 and 4 s, although the means are others: 4/3 and 2/3."""
    row = kernel_table(made_up([1, 3, 11], [5, 6, 40], [4, 3, 90])).values.iloc[0]
    assert row["time_ratio_to_copy"] == pytest.approx(4 / 3)
    assert row["time_ratio_to_clone"] == pytest.approx(4 / 6)
    times = row[["time_median_ms", "time_min_ms", "time_max_ms"]].tolist()
    assert times == [4000, 3000, 90000]
    assert (row["copy_median_ms"], row["clone_median_ms"]) == (3000, 6000)


def test_bandwidth_counts_what_is_read_and_what_is_written():
    """100 + 25 bytes in 5 s are 25 byte/s; a copy moves 2 x 100 in 4 s: one half."""
    row = kernel_table(made_up([4], [4], [5])).values.iloc[0]
    assert row["bandwidth_share"] == pytest.approx(0.5)


def test_what_was_not_measured_is_said_in_words():
    table = kernel_table(made_up([4], [4], [math.nan], kept=math.nan))
    ratios = ["time_ratio_to_copy", "time_ratio_to_clone", "bandwidth_share"]
    assert table.values[ratios].isna().all(axis=None)
    shown = table.shown.iloc[0]
    assert set(shown.iloc[4:]) == {"not measured"}


@pytest.mark.parametrize("package", rivals.RIVALS)
def test_a_package_that_is_not_there_or_fails_has_no_kernels(
    monkeypatch, caplog, package
):
    """The first is ordinary and goes unsaid; the second is logged, with its reason."""
    x = torch.zeros(4, 64)
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert rival_kernels(package, x, 8, 64, compiled=False) is None
    assert not caplog.records

    def broken(*arguments):
        raise ImportError("built for another torch")

    monkeypatch.setattr(rivals, "find_spec", lambda name: name)
    monkeypatch.setattr(rivals, f"_{package}_kernels", broken)
    assert rival_kernels(package, x, 8, 64, compiled=False) is None
    assert "built for another torch" in caplog.text
    assert rival_kernels(package, x, 2, 64, compiled=False) is None


def test_a_package_that_works_is_timed_and_its_bytes_counted(monkeypatch):
    """Here a rival that keeps the values as they are, at 4 bits only."""

    def rival(package, x, bits, block_size, compiled):
        if package != "torchao" or bits != 4:
            return None
        return Kernels(lambda: (x,), lambda kept: kept[0], tuple)

    monkeypatch.setattr(kernel_calls, "rival_kernels", rival)
    found = benchmark().sel(implementation="torchao")
    assert (found["kernel_time"].sel(bits=4) > 0).all()
    assert (found["kept_memory"].sel(bits=4) == 50 * 16 * 4).all()
    assert found["kernel_time"].sel(bits=2).isnull().all()


@pytest.mark.parametrize("package", rivals.RIVALS)
@pytest.mark.parametrize("bits", rivals.RIVAL_BITS)
def test_an_installed_package_is_called_as_it_wants(package, bits):
    """What it gives back differs from x by less than the range of a block."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is no dependency and is not installed")
    x = torch.rand(33, 96, generator=torch.Generator().manual_seed(0))
    kernels = rival_kernels(package, x, bits, 64, compiled=False)
    assert kernels is not None
    values = kernels.decompress(kernels.compress()).reshape(-1)[: x.numel()]
    assert (values.view_as(x) - x).abs().max() < 1
