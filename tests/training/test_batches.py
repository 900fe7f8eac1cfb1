"""Training in mini-batches: the same steps as by hand, and full ones as ever."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.training.batches import Batches
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import (
    BatchSpec,
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
)
from pipeline_src.training.trainer import Trainer

GRAPH = synthetic_graph(num_nodes=200, num_edges=1000, num_features=16)
MODEL = ModelSpec("sage-2x8", "sage", 2, 8, 0.5, True)
METHODS = {
    "fp32": MethodSpec("fp32", "FP32", "full"),
    "exact": MethodSpec("exact", "EXACT", "exact", 2, 4, 8),
    "lean": MethodSpec("lean", "lean", "lean", 2, rows_per_block=8),
    "compress": MethodSpec("compress", "compress", "compress", 2),
    "pyg": MethodSpec("pyg", "PyG", "pyg"),
}
LOADERS = {
    "neighbor": BatchSpec("neighbor", 40, (3, 3)),
    "saint_node": BatchSpec("saint_node", 60, num_steps=2),
    "saint_walk": BatchSpec("saint_walk", 20, walk_length=2, num_steps=2),
    "cluster": BatchSpec("cluster", 2, num_parts=5),
}
ALL = BatchSpec("cluster", 1, num_parts=1)  # one part: the whole graph


def spec_of(method="fp32", batches=None, model=MODEL, epochs=3, seeds=(0,)):
    training = TrainingSpec(epochs, 0.01, 0.0, 0.5, "cross_entropy", batches)
    return RunSpec("synthetic", model, METHODS[method], training, seeds, "cpu", "false")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_record(method, loader):
    spec = spec_of(method, LOADERS[loader], seeds=(0, 1))
    one, other = (train_run(spec, Job(GRAPH)).drop_vars("epoch_time") for _ in "12")
    assert one.attrs["spec"] == other.attrs["spec"]
    assert f'"loader": "{loader}"' in one.attrs["spec"]
    # Bytes count allocations, among them those of code that runs for the first time.
    memory = ["saved_memory", "saved_memory_with_loss", "peak_memory"]
    assert one.drop_vars(memory).equals(other.drop_vars(memory))
    assert not np.array_equal(one.loss_curve[0], one.loss_curve[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_a_batch_of_all_nodes_trains_as_the_full_graph(method, layer):
    """To the bit: the same edges in the same order, the same seeds."""
    model = dataclasses.replace(MODEL, layer=layer)
    full = train_run(spec_of(method, model=model), Job(GRAPH))
    batched = train_run(spec_of(method, ALL, model=model), Job(GRAPH))
    assert full.loss_curve.equals(batched.loss_curve)
    assert full.test_accuracy_curve.equals(batched.test_accuracy_curve)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_batch_is_what_the_graph_holds_of_its_nodes(loader):
    """Features, labels and edges by a slow look-up, for loaders of whole subgraphs."""
    trainer = Trainer(spec_of(batches=LOADERS[loader]), GRAPH, None, 0)
    rows = GRAPH.adjacency
    adjacency = torch.zeros(200, 200)
    for node in range(200):
        adjacency[
            node, rows.column[rows.row_pointer[node] : rows.row_pointer[node + 1]]
        ] = 1
    trained = set(GRAPH.train_index.tolist())
    seen = []
    for data in trainer.batches.loader:
        batch, node = trainer.batches._batch(data), data.n_id
        assert torch.equal(batch.features, GRAPH.features[node])
        assert torch.equal(batch.labels, GRAPH.labels[node])
        matrix = batch.aggregation.matrix.to_dense()
        within = adjacency[node][:, node]
        if loader != "neighbor":
            mean = within / within.sum(dim=1, keepdim=True).clamp(min=1)
            torch.testing.assert_close(matrix, mean, rtol=1e-6, atol=0)
            assert batch.train_index.tolist() == [
                place for place, one in enumerate(node.tolist()) if one in trained
            ]
        assert not (matrix != 0)[within == 0].any()
        seen += node[batch.train_index].tolist()
    if loader in ("neighbor", "cluster"):  # each training node once in an epoch
        assert sorted(seen) == sorted(trained)


def test_each_step_rounds_with_seeds_of_its_own():
    trainer = Trainer(spec_of("exact", LOADERS["cluster"]), GRAPH, None, 0)
    assert len(trainer.batches) == 3  # of 5 parts, 2 at a time
    assert trainer.seeds.shape == (3 * 3, trainer.model.num_seeds)
    assert len(trainer.seeds.unique(dim=0)) == 9


def test_batches_without_a_training_node_take_no_step():
    few = dataclasses.replace(GRAPH, train_index=GRAPH.train_index[:1])
    trainer = Trainer(
        spec_of(batches=BatchSpec("cluster", 1, num_parts=5)), few, None, 0
    )
    taken = []
    step_on = trainer.step_on
    trainer.step_on = lambda batch, step: taken.append(step) or step_on(batch, step)
    loss = trainer.step(1)
    assert len(taken) == 1
    assert 5 <= taken[0] < 10
    assert torch.isfinite(loss)


def test_an_epoch_without_a_training_node_is_refused():
    few = dataclasses.replace(GRAPH, train_index=GRAPH.train_index[:1])
    spec = BatchSpec("saint_walk", 1, walk_length=1, num_steps=1)
    batches = Batches(spec, few, lambda adjacency: None, seed=0)
    epochs = range(40)  # two nodes of 200 in each: one in all forty is no chance
    with pytest.raises(ValueError, match="has a node to train on: take a larger"):
        [list(batches.of_epoch(epoch)) for epoch in epochs]


def test_a_class_trains_in_batches():
    model = ModelSpec.from_config(
        "gat",
        {
            "class": "torch_geometric.nn.GAT",
            "arguments": {"hidden_channels": 8, "num_layers": 2, "heads": 2},
        },
    )
    for method in ("fp32", "compress"):
        record = train_run(spec_of(method, LOADERS["saint_walk"], model), Job(GRAPH))
        assert np.isfinite(record.loss_curve).all()
        assert record.saved_memory > 0
