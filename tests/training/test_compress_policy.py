"""PyTorch Geometric's layers under `compress`, trained and measured as a method."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr

from pipeline_src.compression.attachment import attachment_of
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.measuring.runs import measure_gradient_errors, measure_runs
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer

NODES, HIDDEN, LAYERS = 1000, 32, 3
GRAPH = synthetic_graph(num_nodes=NODES, num_edges=4000, num_features=16)
EAGER = MethodSpec("pyg", "PyG", "pyg")
UNIT = 2.0**-24  # a float32 is rounded by at most that share of it
RATE, CLIP, EPOCHS = 0.01, 0.5, 4


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small graphs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compressed(bits):
    return MethodSpec(f"compress{bits}", f"compress {bits}", "compress", bits)


def run_spec(method, layer="sage", batch_norm=True, seeds=(0,)):
    model = ModelSpec("model", layer, LAYERS, HIDDEN, 0.5, batch_norm)
    plan = TrainingSpec(EPOCHS, RATE, 0.0, CLIP, "cross_entropy")
    return RunSpec("synthetic", model, method, plan, seeds, "cpu", "false")


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_32_bits_have_the_gradient_of_pyg_and_fewer_its_mean(layer):
    """Sums of one term a node, in another order: Higham's bound, 2 N u, squared."""
    methods = [compressed(bits) for bits in (32, 8, 2)]
    specs = [run_spec(method, layer) for method in methods]
    errors = measure_gradient_errors(specs, Job(GRAPH), steps=1, draws=2)
    exact, eight, two = (error.total for error in errors)
    order = (2 * NODES * UNIT) ** 2
    assert exact < order < eight < two < 1


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_32_bits_train_to_the_record_of_pyg(layer):
    """Adam moves a weight by the rate, or by less: loss follows to first order.

    The loss moves by gradient times step. A gradient that is off by d moves the product
    by 2 rate |d| at most, d being at most 2 N u of the clipped norm and shared among
    all weights by their root (Cauchy and Schwarz), once an epoch.
    """
    pyg, kept = (
        train_run(run_spec(method, layer), Job(GRAPH))
        for method in (EAGER, compressed(32))
    )
    expected, found = (one["loss_curve"].values[0] for one in (pyg, kept))
    assert found[0] == expected[0], "forward is the same to the bit"
    weights = Trainer(run_spec(EAGER, layer), GRAPH, None, 0).model.parameters()
    root = math.sqrt(sum(weight.numel() for weight in weights))
    bound = EPOCHS * 2 * RATE * root * (2 * NODES * UNIT * CLIP)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    (other,) = train_run(run_spec(compressed(2), layer), Job(GRAPH))["loss_curve"]
    assert abs(other.values - expected).max() > bound, "else the bound says nothing"


def test_a_seed_gives_one_record_and_noise_of_its_own():
    """Whatever was drawn before, and alone as beside others."""
    both = train_run(run_spec(compressed(2), seeds=(3, 4)), Job(GRAPH))
    torch.rand(5)
    alone = train_run(run_spec(compressed(2), seeds=(4,)), Job(GRAPH))
    xr.testing.assert_equal(
        alone.drop_vars("epoch_time"), both.sel(seed=[4]).drop_vars("epoch_time")
    )
    seeds = [
        attachment_of(Trainer(run_spec(compressed(2)), GRAPH, None, seed).model)
        for seed in (3, 4)
    ]
    assert [one.config.seed for one in seeds] == [3, 4]


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_saved_bytes_are_two_codes_and_a_mask_for_each_hidden_value(bits, batch_norm):
    """A code of the layer and one of its mean over neighbours, and Dropout's mask.

    Beside them no more than three words for 256 values: a zero point and a scale, and
    the ends of a block of rows; and what the loss keeps: its logits and the targets.
    Each tensor is rounded up to 512 bytes; a layer has at most sixteen.
    """
    spec = run_spec(compressed(bits), batch_norm=batch_norm)
    found = measure_step_memory(Trainer(spec, GRAPH, None, 0))["saved_memory"]
    values = (LAYERS - 1) * NODES * HIDDEN
    loss = len(GRAPH.train_index) * (4 * GRAPH.num_classes + 8)
    codes = values * (2 * bits + 1) / 8 + loss
    assert codes <= found <= codes + 12 * values / 256 + 512 * 16 * LAYERS
    eager = dataclasses.replace(spec, method=EAGER)
    whole = measure_step_memory(Trainer(eager, GRAPH, None, 0))["saved_memory"]
    assert whole > 2 * 4 * values, "PyTorch keeps at least both as float32"


def test_a_measurement_has_its_bytes_time_and_gradient_error():
    methods = (EAGER, compressed(2))
    record = measure_runs(
        [run_spec(method) for method in methods],
        Job(GRAPH),
        timed=[method.name for method in methods],
        warmup=1,
        repeats=1,
        gradient_draws=2,
    )
    assert not record[["epoch_time", "peak_memory"]].isnull().any().to_array().any()
    eager, two = (record.sel({"method": method.name}) for method in methods)
    assert float(two["saved_memory"]) < float(eager["saved_memory"])
    assert float(eager["gradient_error"]) == 0 < float(two["gradient_error"])
