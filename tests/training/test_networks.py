"""Networks by the name of their class."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.measuring.runs import measure_gradient_errors
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer

NODES, WIDTH = 200, 64
GRAPH = synthetic_graph(num_nodes=NODES, num_edges=1000, num_features=16)
PYG = MethodSpec("pyg", "PyG", "pyg")
GCN = {"hidden_channels": WIDTH, "num_layers": 2, "norm": "batch", "dropout": 0.5}


def of_class(name, arguments, edges="edges"):
    values = {"class": name, "arguments": arguments, "input": edges}
    return ModelSpec.from_config("net", values)


CLASS = of_class("torch_geometric.nn.GCN", GCN)
MODELS = [
    CLASS,
    of_class("torch_geometric.nn.GraphSAGE", GCN, "matrix"),
]


def compressed(bits):
    return MethodSpec("compress", "compress", "compress", bits)


def run_spec(model, method):
    plan = TrainingSpec(4, 0.01, 0.0, 0.5, "cross_entropy")
    return RunSpec("synthetic", model, method, plan, (0,), "cpu", "false")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_full_precision_of_a_class_is_the_class_as_it_is():
    full = MethodSpec("fp32", "FP32", "full")
    records = [train_run(run_spec(CLASS, one), Job(GRAPH)) for one in (full, PYG)]
    losses = [record["loss_curve"].values for record in records]
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("model", MODELS, ids=["edges", "matrix"])
def test_exact_codes_train_as_pyg_does_and_two_bits_keep_less(model):
    job = Job(GRAPH)
    plain, exact, coded = (
        train_run(run_spec(model, method), job)
        for method in (PYG, compressed(32), compressed(2))
    )
    # Four steps of Adam from gradients whose additions are in another order.
    losses = (record["loss_curve"].values for record in (plain, exact))
    np.testing.assert_allclose(*losses, rtol=NODES * np.finfo(np.float32).eps)
    # The loss before the first step: forward is equal to the bit.
    assert coded["loss_curve"].values[0, 0] == plain["loss_curve"].values[0, 0]
    kept, full = (float(one["saved_memory"].max()) for one in (coded, plain))
    # One code of two bits for a hidden value and one bit of Dropout's, where PyTorch
    # keeps two or more float32; blocks' ends and small tensors may double that.
    hidden = NODES * WIDTH
    assert kept < full - 2 * 4 * hidden + 2 * hidden * 3 / 8


def test_gradient_errors_are_measured_against_pyg_with_the_same_dropout():
    specs = [run_spec(CLASS, method) for method in (PYG, compressed(32), compressed(2))]
    plain, exact, coded = measure_gradient_errors(specs, Job(GRAPH), steps=1, draws=3)
    assert plain.total == 0
    assert exact.total <= (NODES * np.finfo(np.float32).eps) ** 2
    assert 1e-6 < coded.total < 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (of_class("torch_geometric.nn.NoNet", {}), "NoNet cannot be made with .*Attri"),
        (of_class("torch_geometric.nn.GCN", {"a": 1}), "GCN cannot be made with .*'a'"),
        (of_class("no_module.Net", {}), r"no_module\.Net cannot be made .*No module"),
        (of_class("builtins.dict", {}), "expected a subclass of torch.nn.Module, got"),
        (
            of_class("torch_geometric.nn.GCN", {**GCN, "out_channels": 3}),
            r"must give logits shaped \(200, .*got \(200, 3\)",
        ),
    ],
)
def test_a_class_that_is_no_network_of_this_graph_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        train_run(run_spec(model, PYG), Job(GRAPH))


@pytest.mark.parametrize(
    "method",
    [
        MethodSpec("lean", "lean", "lean", 2, rows_per_block=8),
        dataclasses.replace(PYG, technique="compiled"),
    ],
    ids=lambda method: method.policy,
)
def test_what_knows_no_classes_is_refused(method):
    with pytest.raises(ValueError, match=r"cannot train torch_geometric\.nn\.GCN"):
        Trainer(run_spec(CLASS, method), GRAPH, None, 0)
