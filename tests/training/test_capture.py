import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.projection import project
from pipeline_src.training import capture
from pipeline_src.training.capture import FRACTIONS, capture_activations
from pipeline_src.training.job import Job
from pipeline_src.training.spec import (
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
)
from pipeline_src.training.trainer import Trainer

NUM_BINS = 3  # of 2 bits
GRAPH = synthetic_graph(num_nodes=203, num_edges=1000, num_features=16)
SAGE = ModelSpec("sage-2x8", "sage", 2, 8, 0.5, True)
GCN = dataclasses.replace(SAGE, name="gcn-2x8", layer="gcn")
TRAINING = TrainingSpec(4, 0.01, 0.0, 0.5, "cross_entropy")
BLOCK8 = MethodSpec("block8", "G/R = 8", "exact", 2, 4, 8)
SPEC = RunSpec("synthetic", SAGE, BLOCK8, TRAINING, (3,), "cpu", "false")
NAMES = {
    "sage": [
        "layer1.input",
        "layer1.aggregated",
        "layer1.batch_norm",
        "layer2.input",
        "layer2.aggregated",
    ],
    "gcn": ["layer1.input", "layer1.batch_norm", "layer2.input"],
}
WIDTHS = {"layer1.input": 16, "layer1.aggregated": 16}  # of the others: 8


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small graphs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compressed(monkeypatch):
    """What the recipes of a training are given, (activation, seed) in turn."""
    given = []
    compress = Compressor.compress

    def recorded(self, x, seed):
        given.append((x.clone(), seed.clone()))
        return compress(self, x, seed)

    monkeypatch.setattr(Compressor, "compress", recorded)
    return given


def observed(record, name, epoch, projected):
    """Positions and facts of one tensor; the padding, at the end, is left out."""
    one = record.sel(tensor=name, epoch=epoch, projected=projected)
    count = int(one["position"].notnull().sum())
    return one["position"].values[:count], one


def blocks_of(x, block_size):
    values = x.flatten().tolist()
    return [values[i : i + block_size] for i in range(0, len(values), block_size)]


def positions_of(blocks, block_size):
    """Whole blocks between their own extremes, 0 to NUM_BINS; constant ones at 0."""
    positions = []
    for block in blocks:
        low, high = min(block), max(block)
        if len(block) == block_size:
            width = (high - low) or 1.0
            positions += [(value - low) / width * NUM_BINS for value in block]
    return np.array(positions, np.float32)


def fractions_of(blocks):
    """Counted value by value, the last block too where it is not full."""
    num_values = sum(map(len, blocks))
    at_minimum = sum(block.count(min(block)) for block in blocks)
    at_maximum = sum(
        block.count(max(block)) for block in blocks if max(block) > min(block)
    )
    return {
        "at_minimum": at_minimum / num_values,
        "at_maximum": at_maximum / num_values,
        "zero_fraction": sum(block.count(0.0) for block in blocks) / num_values,
        "num_values": num_values,
    }


@pytest.mark.parametrize("model", [SAGE, GCN], ids=lambda model: model.layer)
def test_what_is_observed_is_what_is_compressed(model, compressed):
    """Each tensor of each epoch against a scalar computation, projected and not.

    The graph is small enough that every whole block is in the sample, in order; 203
    nodes leave a last block of 3 rows, which counts in the fractions alone.
    """
    spec = dataclasses.replace(SPEC, model=model)
    record = capture_activations(spec, Job(GRAPH), [1, 3])
    names = NAMES[model.layer]
    assert record["tensor"].values.tolist() == names
    assert len(compressed) == 3 * len(names)
    for index, (x, seed) in enumerate(compressed):
        before, at = divmod(index, len(names))
        if before + 1 == 2:
            continue  # trained, not captured
        width = WIDTHS.get(names[at], 8)
        assert x.shape == (203, width)
        for projected, seen in enumerate([x, project(x, seed, width // 4)]):
            got, one = observed(record, names[at], before + 1, projected)
            block_size = 8 * seen.shape[1]
            assert int(one["block_size"]) == block_size
            blocks = blocks_of(seen, block_size)
            np.testing.assert_array_equal(got, positions_of(blocks, block_size))
            expected = fractions_of(blocks)
            assert {name: float(one[name]) for name in FRACTIONS} == expected


def test_the_first_input_is_the_features_of_the_graph():
    """No network between: what is kept of it can be said without training."""
    features = GRAPH.features.relu()
    graph = dataclasses.replace(GRAPH, features=features)
    record = capture_activations(SPEC, Job(graph), [1, 2])
    blocks = blocks_of(features, 8 * 16)
    for epoch in (1, 2):
        got, one = observed(record, "layer1.input", epoch, 0)
        np.testing.assert_array_equal(got, positions_of(blocks, 8 * 16))
        assert float(one["zero_fraction"]) == fractions_of(blocks)["zero_fraction"]
        assert 0.3 < float(one["zero_fraction"]) < 0.7
    # Projections are drawn anew in each step.
    one, other = (observed(record, "layer1.input", epoch, 1)[0] for epoch in (1, 2))
    assert not np.array_equal(one, other)


def test_positions_span_each_block_from_end_to_end():
    record = capture_activations(SPEC, Job(GRAPH), [1, 4])
    assert dict(record.sizes) == {
        "tensor": 5,
        "epoch": 2,
        "projected": 2,
        "sample": 25 * 8 * 16,
    }
    for name in NAMES["sage"]:
        for projected in (0, 1):
            position, one = observed(record, name, 4, projected)
            blocks = position.reshape(25, int(one["block_size"]))
            assert (blocks.min(axis=1) == 0).all()
            assert (blocks.max(axis=1) == NUM_BINS).all()
            for end in ("at_minimum", "at_maximum"):  # of 26 blocks, the last included
                assert round(float(one[end] * one["num_values"])) >= 26
    assert record["position"].dtype == np.float32


@pytest.mark.parametrize("boundaries", ["even", "clipped_normal"])
def test_observing_does_not_change_the_training(monkeypatch, boundaries):
    """Losses and parameters to the bit, up to the last epoch that is observed."""

    def boundaries_of(bits, size):
        return (0.0, 1.1, 1.9, 3.0)

    trainers = []

    class Recorded(Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.losses = []
            trainers.append(self)

        def step(self, epoch):
            loss = super().step(epoch)
            self.losses.append(float(loss))
            return loss

    method = dataclasses.replace(BLOCK8, boundaries=boundaries)
    spec = dataclasses.replace(SPEC, method=method, seeds=(3, 4))
    monkeypatch.setattr(capture, "Trainer", Recorded)
    capture_activations(spec, Job(GRAPH, boundaries_of), [3, 1])
    (watched,) = trainers
    alone = Recorded(spec, GRAPH, boundaries_of, 3)
    for epoch in range(3):
        alone.step(epoch)
    assert watched.losses == alone.losses
    state = alone.model.state_dict()
    for name, parameter in watched.model.state_dict().items():
        assert torch.equal(parameter, state[name])


def test_a_specification_gives_an_identical_record():
    record, again = (capture_activations(SPEC, Job(GRAPH), [2]) for _ in range(2))
    assert record.identical(again)
    other = capture_activations(dataclasses.replace(SPEC, seeds=(4,)), Job(GRAPH), [2])
    assert not record["position"].equals(other["position"])


def test_without_a_projection_there_is_no_projected_variant():
    method = dataclasses.replace(BLOCK8, projection_ratio=1)
    spec = dataclasses.replace(SPEC, method=method)
    record = capture_activations(spec, Job(GRAPH), [1])
    for name in ("position", "block_size", *FRACTIONS):
        assert record[name].sel(projected=1).isnull().all()
        assert not record[name].sel(projected=0, tensor="layer1.input").isnull().any()


def test_a_sample_of_a_large_activation_is_whole_blocks_of_it(monkeypatch):
    """Of 25 blocks of 128 values, 3 fit in 400; the facts are still those of all."""
    whole = capture_activations(SPEC, Job(GRAPH), [1])
    monkeypatch.setattr(capture, "SAMPLED_VALUES", 400)
    record = capture_activations(SPEC, Job(GRAPH), [1])
    position, _ = observed(record, "layer1.input", 1, 0)
    everything = observed(whole, "layer1.input", 1, 0)[0].reshape(25, 128).tolist()
    sampled = position.reshape(3, 128).tolist()
    places = [everything.index(block) for block in sampled]
    assert places == sorted(set(places))
    for name in FRACTIONS:
        assert record[name].equals(whole[name])


def test_the_record_says_what_was_observed():
    record = capture_activations(SPEC, Job(GRAPH, source_digest="0123"), [3, 1])
    assert record["epoch"].values.tolist() == [1, 3]
    assert record["projected"].values.tolist() == [0, 1]
    assert RunSpec.from_json(json.loads(record.attrs["spec"])) == SPEC
    assert record.attrs["bits"] == 2
    assert json.loads(record.attrs["provenance"])["source_digest"] == "0123"
    for variable in [*record.data_vars.values(), *record.coords.values()]:
        assert {"units", "long_name"} <= set(variable.attrs)


def test_full_precision_has_nothing_to_capture():
    method = MethodSpec("fp32", "FP32", "full")
    with pytest.raises(ValueError, match="method fp32 compresses no activation"):
        capture_activations(dataclasses.replace(SPEC, method=method), Job(GRAPH), [1])


@pytest.mark.parametrize("epochs", [[0], [5], [1, 5, -1]])
def test_an_epoch_that_is_not_trained_is_refused(epochs):
    bad = [epoch for epoch in epochs if epoch != 1]
    message = rf"must lie in 1\.\.4, got \[{', '.join(map(str, bad))}\]"
    with pytest.raises(ValueError, match=message):
        capture_activations(SPEC, Job(GRAPH), epochs)


def test_a_method_without_the_boundaries_it_needs_is_refused():
    method = dataclasses.replace(BLOCK8, boundaries="clipped_normal")
    with pytest.raises(ValueError, match="block8 reads its boundaries"):
        capture_activations(dataclasses.replace(SPEC, method=method), Job(GRAPH), [1])


def test_activations_that_are_not_finite_are_named():
    features = GRAPH.features.clone()
    features[5, 2] = math.nan
    graph = dataclasses.replace(GRAPH, features=features)
    message = r"in the activations layer1.input, layer1.aggregated, .* learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        capture_activations(SPEC, Job(graph), [2])
