"""Nodes with several labels: loss and micro-F1 by hand, under every policy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from pipeline_src.distributed.parts import cut
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.files import read_graph, write_graph
from pipeline_src.graphs.graph import check_graph
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import (
    BatchSpec,
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
)
from pipeline_src.training.trainer import (
    Trainer,
    chance_accuracy,
    micro_f1,
    training_loss,
)

PLAIN = synthetic_graph(num_nodes=200, num_edges=1000, num_features=16)
# What a node is labelled with can be learnt: each label is the sign of a feature.
GRAPH = dataclasses.replace(
    PLAIN, labels=(PLAIN.features[:, :5] > 0).to(torch.uint8), num_classes=5
)
METHODS = {
    "fp32": MethodSpec("fp32", "FP32", "full"),
    "exact": MethodSpec("exact", "EXACT", "exact", 2, 1, 8),
    "lean": MethodSpec("lean", "lean", "lean", 2, rows_per_block=8),
    "compress": MethodSpec("compress", "compress", "compress", 2),
    "pyg": MethodSpec("pyg", "PyG", "pyg"),
}


def spec_of(method="fp32", loss="cross_entropy", batches=None, epochs=60):
    model = ModelSpec("sage-2x32", "sage", 2, 32, 0.0, True)
    training = TrainingSpec(epochs, 0.02, 0.0, None, loss, batches)
    return RunSpec("labels", model, METHODS[method], training, (0,), "cpu", "false")


@pytest.mark.parametrize("method", METHODS)
def test_every_policy_learns_them(method):
    """Far above the same answer for all nodes; two bits do not stop it."""
    record = train_run(spec_of(method), Job(GRAPH))
    assert record.train_accuracy_curve[0, -1] > 0.9
    assert (record.test_accuracy > record.chance_accuracy).all()
    assert "micro-F1" in record.attrs["provenance"]


def test_they_train_in_batches():
    batches = BatchSpec("cluster", 2, num_parts=5)
    record = train_run(spec_of(batches=batches, epochs=30), Job(GRAPH))
    assert record.train_accuracy_curve[0, -1] > 0.9


def test_the_loss_is_the_binary_cross_entropy_of_every_label():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    by_hand = [
        -math.log(p if y else 1 - p)
        for z, y in zip(
            logits.flatten().tolist(), labels.flatten().tolist(), strict=True
        )
        for p in [1 / (1 + math.exp(-z))]
    ]
    loss = training_loss(logits, labels, "cross_entropy")
    # Eight roundings of float32 are below this.
    assert float(loss) == pytest.approx(sum(by_hand) / 4, rel=8 * 2**-24)
    with pytest.raises(ValueError, match="loss: cross_entropy; got 'log_cross"):
        training_loss(logits, labels, "log_cross_entropy")


def test_micro_f1_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for share in (0.1, 0.5):
        given, right = (torch.rand(2, 40, 6, generator=generator) < share).unbind()
        expected = f1_score(right.numpy(), given.numpy(), average="micro")
        assert float(micro_f1(given, right.to(torch.uint8))) == pytest.approx(expected)
    none = torch.zeros(3, 2)
    assert float(micro_f1(none.bool(), none)) == 0.0


def test_evaluation_scores_each_split_apart():
    trainer = Trainer(spec_of(), GRAPH, None, 0)
    for epoch in range(3):
        trainer.step(epoch)
    scores = trainer.evaluate().tolist()
    with torch.no_grad():
        given = trainer.model(GRAPH.features, trainer.aggregation) > 0
    for score, index in zip(scores, GRAPH.splits.values(), strict=True):
        expected = f1_score(GRAPH.labels[index], given[index], average="micro")
        assert score == pytest.approx(expected)


def test_chance_is_the_best_answer_that_all_nodes_share():
    labels = GRAPH.labels[GRAPH.test_index]
    answers = ((np.arange(32)[:, None] >> np.arange(5)) & 1).astype(bool)
    best = max(
        f1_score(labels, np.tile(answer, (len(labels), 1)), average="micro")
        for answer in answers[1:]
    )
    assert chance_accuracy(labels) == pytest.approx(best)
    assert chance_accuracy(torch.tensor([0, 1, 1, 2])) == 0.5


def test_a_graph_keeps_them_in_its_file(tmp_path):
    write_graph(GRAPH, tmp_path / "graph.npz")
    again = read_graph(tmp_path / "graph.npz")
    assert torch.equal(again.labels, GRAPH.labels)
    assert again.is_multilabel


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (GRAPH.labels + 1, "labels: expected values in 0 .. 1"),
        (GRAPH.labels[:, :4], "labels: expected 5 columns"),
        (GRAPH.labels.float(), "expected torch.uint8"),
    ],
)
def test_a_table_that_is_none_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_graph(dataclasses.replace(GRAPH, labels=labels))


def test_training_in_parts_refuses_them():
    owner = torch.arange(200) % 2
    with pytest.raises(ValueError, match="training in parts expects one class per"):
        list(cut(GRAPH, owner, 2))
