"""A choice of the machine's, whether kernels are compiled, changes no bit of lean."""

import pytest
import torch

from pipeline_src.gnn.lean import recipe
from pipeline_src.graphs.embedded import digits_graph, synthetic_graph
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer

EPOCHS = 3
METHOD = MethodSpec("lean2", "lean", "lean", 2, rows_per_block=8)


def trained(graph, compile):
    """Losses and parameters after some epochs."""
    # One width for all, so that kernels are compiled once.
    model = ModelSpec("sage-2x64", "sage", 2, 64, 0.5, True)
    training = TrainingSpec(EPOCHS, 0.01, 0.0, 0.5, "cross_entropy")
    spec = RunSpec(graph.name, model, METHOD, training, (0,), "cpu", compile)
    trainer = Trainer(spec, graph, None, seed=0)
    losses = [trainer.step(epoch) for epoch in range(EPOCHS)]
    return losses, trainer.model.state_dict()


@pytest.mark.parametrize(
    ("graph", "run_values"),
    [
        (digits_graph(), recipe.RUN_VALUES),
        # 1003 nodes are 125 blocks of 8 and a rest, in four runs.
        (synthetic_graph(1003, num_edges=5000, num_features=20), 256 * 64),
    ],
    ids=["digits", "several runs"],
)
def test_compiled_training_is_plain_training(graph, run_values, monkeypatch):
    monkeypatch.setattr(recipe, "RUN_VALUES", run_values)
    losses, plain = trained(graph, "false")
    compiled_losses, compiled = trained(graph, "true")
    assert losses == compiled_losses
    for name, value in plain.items():
        assert torch.equal(value, compiled[name]), name
