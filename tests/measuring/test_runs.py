import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.measuring import runs
from pipeline_src.measuring.runs import measure_runs
from pipeline_src.records.datasets import MEASUREMENT_SCALARS, MEMORY_SCALARS
from pipeline_src.training.job import Job
from pipeline_src.training.spec import (
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
)
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer

GRAPH = synthetic_graph(num_nodes=200, num_edges=1000, num_features=16)
JOB = Job(GRAPH)
MODEL = ModelSpec("sage-2x8", "sage", 2, 8, 0.5, True)
TRAINING = TrainingSpec(2, 0.01, 0.0, 0.5, "cross_entropy")
METHODS = [
    MethodSpec("fp32", "FP32", "full"),
    MethodSpec("exact", "EXACT", "exact", 2, 4, 1),
    MethodSpec("block8", "G/R = 8", "exact", 2, 4, 8),
]
SPECS = [
    RunSpec("synthetic", MODEL, method, TRAINING, (0,), "cpu", "false")
    for method in METHODS
]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small graphs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(specs=SPECS, job=JOB, **changes):
    plan = {"timed": ("fp32", "block8"), "warmup": 1, "repeats": 3}
    plan |= {"gradient_draws": 1}
    return measure_runs(specs, job, **{**plan, **changes})


def test_the_record_has_a_row_for_each_method_and_a_column_for_each_repeat():
    record = measure(job=Job(GRAPH, threads=7, source_digest="0123"))
    assert dict(record.sizes) == {"method": 3, "repeat": 3}
    assert record["method"].values.tolist() == ["fp32", "exact", "block8"]
    assert record["epoch_time"].dims == ("method", "repeat")
    assert set(record.data_vars) == {"epoch_time", *MEASUREMENT_SCALARS}
    assert (record["first_step_time"] > 0).all()
    assert float(record["gradient_error"].sel({"method": "fp32"})) == 0
    assert float(record["gradient_error"].sel({"method": "exact"})) > 0
    specs = [RunSpec.from_json(values) for values in json.loads(record.attrs["specs"])]
    assert specs == SPECS
    provenance = json.loads(record.attrs["provenance"])
    assert (provenance["threads"], provenance["source_digest"]) == (7, "0123")


def test_methods_that_are_not_timed_have_no_time_but_all_have_memory():
    record = measure()
    assert record["epoch_time"].sel({"method": "exact"}).isnull().all()
    assert (record["epoch_time"].sel({"method": ["fp32", "block8"]}) > 0).all()
    for index, spec in enumerate(SPECS):
        books = measure_step_memory(Trainer(spec, GRAPH, None, seed=0))
        row = record.isel(method=index)
        assert {name: float(row[name]) for name in books} == books
    assert set(books) == set(MEMORY_SCALARS)


def test_methods_take_turns_and_warm_up_before_the_clock_counts(monkeypatch):
    """Two rounds of warming up, then three that count: fp32, block8, fp32, ..."""
    steps = []

    class Recorded(Trainer):
        def step(self, epoch):
            if self.spec.method.name != "reference":  # of gradient errors
                steps.append(self.spec.method.name)
            return super().step(epoch)

    def measure_time(call, device, calls=1):
        assert calls == 1  # on a CPU
        del steps[:-9]  # memory steps before the rounds are of no concern here
        call()
        return float(next(seconds))

    seconds = iter(range(100))
    monkeypatch.setattr(runs, "Trainer", Recorded)
    monkeypatch.setattr(runs, "measure_time", measure_time)
    times = measure(warmup=2)["epoch_time"].values
    assert steps[-10:] == ["fp32", "block8"] * 5
    # The first three went to the first steps.
    expected = [[7, 9, 11], [math.nan] * 3, [8, 10, 12]]
    np.testing.assert_array_equal(times, expected)


def test_boundaries_go_to_the_methods_that_need_them():
    """They cost a method nothing that is kept, and without them it is refused."""
    method = dataclasses.replace(METHODS[2], name="vm", boundaries="clipped_normal")
    specs = [*SPECS, dataclasses.replace(SPECS[0], method=method)]
    with pytest.raises(ValueError, match="vm reads its boundaries"):
        measure(specs, timed=())
    record = measure_runs(
        specs,
        Job(GRAPH, lambda bits, size: (0.0, 1.1, 1.9, 3.0)),
        timed=["vm"],
        warmup=0,
        repeats=1,
        gradient_draws=0,
    )
    vm, block8 = (record.sel({"method": name}) for name in ("vm", "block8"))
    assert float(vm["saved_memory"]) == float(block8["saved_memory"])
    assert float(vm["epoch_time"][0]) > 0
    assert record["gradient_error"].isnull().all()


def test_an_unknown_method_to_time_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(runs, "Trainer", None)
    message = r"among \['fp32', 'exact', 'block8'\], got \['block16', 'block4'\]"
    with pytest.raises(ValueError, match=message):
        measure(timed=("fp32", "block4", "block16"))


@pytest.mark.parametrize(
    ("compile", "values", "expected"),
    [("auto", 200 * 8, 1), ("auto", 200 * 8 + 1, 0), ("false", 0, 0), ("true", 0, 1)],
)
def test_the_compiler_is_asked_ahead_where_it_will_be_needed(
    compile, values, expected, monkeypatch
):
    """Once, whatever the number of methods; an import of seconds, where nothing is."""
    asked = []
    monkeypatch.setattr(runs, "probe_ahead", lambda: asked.append(1))
    monkeypatch.setattr("pipeline_src.quant.fusion.MIN_NUMEL_ON_CPU", values)
    # Nothing is compressed, so nothing is compiled in the end.
    full = [dataclasses.replace(SPECS[0], compile=compile)] * 2
    measure(full, timed=(), gradient_draws=0)
    assert len(asked) == expected


def test_gradient_errors_have_equal_masks_and_fall_with_bits():
    """With other masks of Dropout 0.5 every error would be of the order of 1.

    A bin of 8 bits is 1/127 of a side, and its variance a quarter of its square at
    most: far below 1e-3 of the gradient, whatever the layer's condition.
    """
    methods = [
        METHODS[0],
        dataclasses.replace(METHODS[1], projection_ratio=1),
        dataclasses.replace(METHODS[1], projection_ratio=1, bits=8),
        MethodSpec("lean2", "2", "lean", 2, 1, 8),
        MethodSpec("lean8", "8", "lean", 8, 1, 8),
        MethodSpec("apart", "8", "lean", 8, 1, 8, without=("resident_input",)),
    ]
    specs = [dataclasses.replace(SPECS[0], method=method) for method in methods]
    full, exact2, exact8, lean2, lean8, apart = runs.measure_gradient_errors(
        specs, JOB, steps=2, draws=2
    )
    errors = (full, exact2, exact8, lean2, lean8, apart)
    full, exact2, exact8, lean2, lean8, apart = (one.total for one in errors)
    assert full == 0
    assert 0 < exact8 < 1e-3 < exact2 < 1
    assert 0 < lean8 < 1e-3 < lean2 < 1
    assert lean8 < apart < 1e-3


# That a compiled network keeps its masks, tests/gnn/pyg/test_network.py holds as well.
@pytest.mark.parametrize(
    "technique",
    ["autocast", "checkpointing", pytest.param("compiled", marks=pytest.mark.slow)],
)
def test_rivals_have_the_masks_of_eager_ones(technique):
    """With other masks the error would be of the order of 1."""
    method = MethodSpec("rival", "rival", "pyg", technique=technique)
    spec = dataclasses.replace(SPECS[0], method=method, compile="auto")
    (error,) = runs.measure_gradient_errors([spec], JOB, steps=1, draws=1)
    assert error.total < 1e-3


def test_projection_makes_the_gradient_of_the_published_layout_useless():
    """EXACT keeps every eighth: the error of the projection alone is (D - 1) / R."""
    error, _ = runs.measure_gradient_errors(SPECS[1:], JOB, steps=1, draws=2)
    assert error.total > 1
