"""Training and tuning: the best epoch is kept, and the start competes."""

from dataclasses import replace

import pytest
import torch

from pipeline_src.features.networks import train_networks
from pipeline_src.features.plans import FeatureTraining
from pipeline_src.features.training import accuracies, fine_tune, train
from pipeline_src.gnn.feature_bits import uniform_bits
from pipeline_src.gnn.feature_network import MODELS, FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.feature_store import RowPacking
from pipeline_src.training.job import Job

GRAPH = synthetic_graph(
    num_nodes=200, num_edges=1600, num_features=20, num_classes=4, seed=1
)


def network(model, seed=0):
    torch.manual_seed(seed)
    return FeatureNetwork(model, GRAPH.num_features, GRAPH.num_classes)


def points_of(net, bits):
    return QuantizedPoints(
        uniform_bits(net.num_layers, bits), RowPacking(compile="false")
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_network_holds_the_weights_of_the_reported_epoch(model):
    net = network(model)
    plan = MessagePlan.of(GRAPH.adjacency, None, net.gathered_width)
    trained = train(net, GRAPH, plan, 30)
    reached = accuracies(net, GRAPH.features, GRAPH, plan, None).tolist()
    assert reached == [trained.validation_accuracy, trained.test_accuracy]
    assert 1 <= trained.epoch <= 30
    assert trained.test_accuracy > 2 / GRAPH.num_classes  # twice chance

    points = points_of(net, 1)
    untuned = fine_tune(net, GRAPH, plan, points, epochs=0)
    assert untuned.epoch == 0
    tuned = fine_tune(net, GRAPH, plan, points, epochs=5)
    assert tuned.validation_accuracy >= untuned.validation_accuracy
    store = net.pack_input(GRAPH.features, plan, points)
    reached = accuracies(net, store, GRAPH, plan, points).tolist()
    assert reached == [tuned.validation_accuracy, tuned.test_accuracy]


def test_zero_epochs_leave_the_weights_and_measure_direct_quantisation():
    net = network("gcn")
    before = [parameter.clone() for parameter in net.parameters()]
    plan = MessagePlan.of(GRAPH.adjacency, None, net.gathered_width)
    points = points_of(net, 2)
    fit = fine_tune(net, GRAPH, plan, points, epochs=0)
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    store = net.pack_input(GRAPH.features, plan, points)
    reached = accuracies(net, store, GRAPH, plan, points).tolist()
    assert reached == [fit.validation_accuracy, fit.test_accuracy]


@pytest.mark.parametrize("model", MODELS)
def test_full_precision_is_tuned_in_the_same_loop(model):
    """Points of 32 bits store what full precision reads: the same weights follow."""
    plain, packed = network(model), network(model)
    plan = MessagePlan.of(GRAPH.adjacency, None, plain.gathered_width)
    fits = []
    for net, points in ((plain, None), (packed, points_of(packed, 32))):
        torch.manual_seed(3)
        fits.append(fine_tune(net, GRAPH, plan, points, epochs=30))
    assert fits[0] == fits[1]
    assert fits[0].epoch > 0
    for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_start_wins_ties():
    """With no step to take, no epoch is better: the weights stay."""
    net = network("gcn")
    plan = MessagePlan.of(GRAPH.adjacency, None, net.gathered_width)
    for group in (frozen := net.parameter_groups()):
        group["lr"] = 0.0
    net.parameter_groups = lambda: frozen
    for points in (points_of(net, 4), None):
        assert fine_tune(net, GRAPH, plan, points, epochs=3).epoch == 0


def test_tuning_learns_through_one_bit():
    """From random weights, steps through quantised points lower the loss."""
    net = network("gcn")
    plan = MessagePlan.of(GRAPH.adjacency, None, net.gathered_width)
    points = points_of(net, 1)
    before = fine_tune(net, GRAPH, plan, points, epochs=0)
    after = fine_tune(net, GRAPH, plan, points, epochs=40)
    assert after.test_accuracy > max(before.test_accuracy, 2 / GRAPH.num_classes)


def test_a_network_that_diverges_is_refused_with_its_epoch_and_seed():
    """Features near the largest float32: their products are not finite."""
    wild = replace(GRAPH, features=GRAPH.features * 1e38)
    training = FeatureTraining(wild.name, "gcn", 3, (5,))
    cause = rf"^{training.name} seed 5: the loss is (nan|inf) after epoch \d\..*leave"
    with pytest.raises(FloatingPointError, match=cause):
        train_networks(training, Job(wild))
