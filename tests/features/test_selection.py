"""Networks are trained, bits selected, and the choice measured on fresh networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from pipeline_src.collecting.features import collect_features
from pipeline_src.features import measurement
from pipeline_src.features import networks as feature_networks
from pipeline_src.features import selection as feature_selection
from pipeline_src.features.measurement import measure_feature_bits
from pipeline_src.features.networks import network_of, train_networks
from pipeline_src.features.plans import (
    FeatureMeasurement,
    FeatureSearch,
    FeatureTraining,
)
from pipeline_src.features.selection import ABS, select_feature_bits
from pipeline_src.features.space import (
    GRANULARITIES,
    bits_from_json,
    bits_to_json,
)
from pipeline_src.features.training import accuracies
from pipeline_src.gnn.feature_bits import uniform_bits
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.training.job import Job

GRAPH = synthetic_graph(
    num_nodes=200, num_edges=1600, num_features=20, num_classes=4, seed=1
)
SEARCH = FeatureSearch(
    (1, 2, 4, 8, 32), 2, 4, "node", "receiver", "bfloat16", 2.0, 12, ("random",), 4, 10
)
MEASUREMENT = FeatureMeasurement((8, 1), (1,), 3)
SELECTION = FeatureTraining("made-up", "gcn", 15, (1000, 1001))
FRESH = FeatureTraining("made-up", "gcn", 15, (0, 1))


class LostMachineError(Exception):
    """Kills a step."""


@pytest.fixture(scope="module")
def networks():
    return train_networks(SELECTION, Job(GRAPH))


@pytest.fixture(scope="module")
def fresh():
    return train_networks(FRESH, Job(GRAPH))


@pytest.fixture(scope="module")
def selection(networks):
    return select_feature_bits(SEARCH, networks, Job(GRAPH))


@pytest.fixture(scope="module")
def measured(fresh, selection):
    return measure_feature_bits(
        MEASUREMENT, fresh, selection, Job(GRAPH), compile="false"
    )


def test_a_record_holds_the_networks_it_reports(networks, tmp_path):
    write_dataset(networks, tmp_path / "networks.nc")
    again = read_dataset(tmp_path / "networks.nc")
    for index in range(2):
        network = network_of(again, index, GRAPH)
        plan = MessagePlan.of(GRAPH.adjacency, None, network.gathered_width)
        reached = accuracies(network, GRAPH.features, GRAPH, plan, None).tolist()
        row = again.isel(seed=index)
        assert reached == [row["validation_accuracy"], row["test_accuracy"]]


def test_a_killed_training_repeats_no_seed(networks, tmp_path, monkeypatch):
    trained = []

    def train_once(network, *rest):
        if len(trained) == most:
            raise LostMachineError
        trained.append(network)
        return plain(network, *rest)

    plain = feature_networks.train
    most = 1
    monkeypatch.setattr(feature_networks, "train", train_once)
    with pytest.raises(LostMachineError):
        train_networks(SELECTION, Job(GRAPH, partial_dir=tmp_path))
    most = 2  # a third training would be one too many
    again = train_networks(SELECTION, Job(GRAPH, partial_dir=tmp_path))
    assert again.identical(networks)


def test_the_choice_keeps_the_allowed_validation_accuracy(selection):
    """And nothing measured within the drop is smaller."""
    rows = selection.drop_dims("choice")
    abs_rows = (rows["strategy"].values == "surrogate") & (
        rows["aim"].values == "max_drop"
    )
    memory, accuracy = (
        rows["memory"].values[abs_rows],
        rows["accuracy"].values[abs_rows],
    )
    allowed = accuracy >= selection.attrs["baseline"] - SEARCH.max_drop / 100 - 1e-9
    assert rows["best_memory"].values[abs_rows][-1] == memory[allowed].min()
    assert len(memory) == SEARCH.budget
    assert selection["choice"].values.tolist()[0] == ABS


def test_test_labels_do_not_reach_the_selection(networks, selection):
    """With every test label changed, the same record."""
    labels = GRAPH.labels.clone()
    labels[GRAPH.test_index] = (labels[GRAPH.test_index] + 1) % GRAPH.num_classes
    other = type(GRAPH)(**{**vars(GRAPH), "labels": labels})
    again = select_feature_bits(SEARCH, networks, Job(other))
    assert again.identical(selection)


def test_granularities_are_compared_at_equal_average_bits(selection, measured):
    names = [f"{granularity} at 4 bits" for granularity in GRANULARITIES]
    assert selection["choice"].values.tolist() == [ABS, *names]
    bits = dict(
        zip(measured["method"].values, measured["average_bits"].values, strict=True)
    )
    assert max(bits[name] for name in names) <= bits["uniform at 4 bits"] == 4
    for text in selection["bits"].values:
        assert bits_from_json(str(text)).num_buckets == 2


def test_a_killed_search_measures_nothing_twice(
    networks, selection, tmp_path, monkeypatch
):
    asked = []
    plain = feature_selection.accuracies

    def once(*arguments):
        asked.append(arguments[-1].bits)
        if len(asked) == 9:
            raise LostMachineError
        return plain(*arguments)

    monkeypatch.setattr(feature_selection, "accuracies", once)
    with pytest.raises(LostMachineError):
        select_feature_bits(SEARCH, networks, Job(GRAPH, partial_dir=tmp_path))
    before = set(asked[:-1:2])  # two networks each; the ninth call was lost
    asked.append(None)  # no other call is the ninth
    again = select_feature_bits(SEARCH, networks, Job(GRAPH, partial_dir=tmp_path))
    of_abs = asked[10 : 10 + 2 * (SEARCH.budget - len(before))]
    assert not before & set(of_abs)
    assert again.identical(selection)


def test_what_is_measured_never_chose_bits(networks, selection):
    with pytest.raises(ValueError, match=r"fresh, but bits were selected on .*100"):
        measure_feature_bits(MEASUREMENT, networks, selection, Job(GRAPH))


def test_a_measurement_has_all_methods_and_their_bytes(measured, fresh):
    names = measured["method"].values.tolist()
    assert names[:2] == [ABS, f"{ABS} tuned"]
    assert names[-3:] == ["uniform 8", "uniform 1", "uniform 1 tuned"]
    assert bool((measured["packed_memory"] > measured["nominal_memory"]).all())
    assert bool((measured["packed_memory"] < measured["full_memory"]).all())
    assert bool((measured["peak_memory"] > 0).all())
    untuned = measured["validation_accuracy"].values[names.index("uniform 1")]
    tuned = measured["validation_accuracy"].values[names.index("uniform 1 tuned")]
    assert (tuned >= untuned).all()  # the start competes
    assert measured["full_test_accuracy"].values == pytest.approx(
        fresh["test_accuracy"].values
    )


def test_full_precision_is_tuned_by_the_rule_of_packed_networks(
    fresh, selection, measured, monkeypatch
):
    """As many epochs, the same optimiser, rate, dropout seed and rule of selection.

    With points that change nothing, 32 bits everywhere, the two are the same loop: so
    they must end at the same accuracies, seed by seed.
    """
    plain, calls = measurement.fine_tune, []

    def watched(network, graph, plan, points, epochs):
        calls.append((points is None, epochs, torch.initial_seed()))
        return plain(network, graph, plan, points, epochs)

    monkeypatch.setattr(measurement, "fine_tune", watched)
    full = bits_to_json(uniform_bits(2, 32, (3,)))
    lossless = selection.assign_coords(
        bits=("choice", [full] * selection.sizes["choice"])
    )
    record = measure_feature_bits(
        MEASUREMENT, fresh, lossless, Job(GRAPH), compile="false"
    )
    tuned = {name for name in calls if name[1]}
    epochs = MEASUREMENT.fine_tuning_epochs
    assert tuned == {(full, epochs, seed) for full in (True, False) for seed in (0, 1)}
    for part in ("validation", "test"):
        packed = record[f"{part}_accuracy"].sel({"method": f"{ABS} tuned"})
        alone = record[f"full_tuned_{part}_accuracy"]
        assert packed.values.tolist() == alone.values.tolist()
    untuned, best = (
        measured[f"full_{tuned}validation_accuracy"].values for tuned in ("", "tuned_")
    )
    assert (best >= untuned).all()  # the start competes


def test_without_fine_tuning_there_is_no_tuned_full_precision(fresh, selection):
    nothing = replace(MEASUREMENT, tuned_uniform_bits=(), fine_tuning_epochs=0)
    record = measure_feature_bits(
        nothing, fresh, selection, Job(GRAPH), compile="false"
    )
    assert np.isnan(record["full_tuned_test_accuracy"].values).all()


def test_networks_have_the_hyperparameters_that_they_are_asked_for():
    """In the record, in the search and in the measurement; in all that tunes them."""
    graph = synthetic_graph(60, 300, 8, 3, seed=2)
    own = {"hidden": 5, "dropout": 0.25, "learning_rate": 0.02, "weight_decay": 0.0}
    chose, fresh = (
        train_networks(
            FeatureTraining("made-up", "gcn", 2, (first,), **own), Job(graph)
        )
        for first in (1000, 0)
    )
    network = network_of(fresh, 0, graph)
    assert {name: getattr(network.hyperparameters, name) for name in own} == own
    assert fresh["layers.0.weight"].shape == (1, 5, 8)
    search = replace(SEARCH, equal_bits=None, max_drop=100.0)
    selection = select_feature_bits(search, chose, Job(graph))
    record = measure_feature_bits(
        MEASUREMENT, fresh, selection, Job(graph), compile="false"
    )
    # Inputs of 8 features and of 5, and products of 5 and of 3, of 60 nodes.
    assert float(record["full_memory"]) == 4 * 60 * (8 + 5 + 5 + 3)


def test_uniform_bits_do_not_depend_on_what_the_search_may_do_to_attention():
    """Four bits and ranges of a receiver, though the search has neither."""
    graph = synthetic_graph(60, 300, 8, 3, seed=2)
    blocks = [FeatureTraining("made-up", "agnn", 2, (first,)) for first in (1000, 0)]
    chose, fresh = (train_networks(block, Job(graph)) for block in blocks)
    daring = replace(
        SEARCH,
        candidate_bits=(1, 2, 32),
        least_attention_bits=1,
        attention_range="tensor",
        equal_bits=None,
        max_drop=100.0,
    )
    rows = [
        measure_feature_bits(
            FeatureMeasurement((1,), (), 0),
            fresh,
            select_feature_bits(search, chose, Job(graph)),
            Job(graph),
            compile="false",
        ).sel({"method": "uniform 1"})
        for search in (replace(SEARCH, equal_bits=None), daring)
    ]
    xr.testing.assert_identical(*(row.drop_attrs() for row in rows))
    bits = bits_from_json(str(rows[1]["bits"].values))
    assert bits.bits(1, "attention") == (4, 4)
    assert bits.bits(1, "combination") == (1, 1)


def test_a_killed_measurement_repeats_no_seed(
    fresh, selection, measured, tmp_path, monkeypatch
):
    def measure():
        return measure_feature_bits(
            MEASUREMENT,
            fresh,
            selection,
            Job(GRAPH, partial_dir=tmp_path),
            compile="false",
        )

    plain, seeds = measurement.fine_tune, []

    def lost_at_the_second_seed(*arguments):
        seeds.append(torch.initial_seed())
        if seeds[-1] == 1 and seeds.count(1) == 1:
            raise LostMachineError
        return plain(*arguments)

    monkeypatch.setattr(measurement, "fine_tune", lost_at_the_second_seed)
    with pytest.raises(LostMachineError):
        measure()
    of_first_seed = seeds.count(0)
    assert measure().identical(measured)
    assert seeds.count(0) == of_first_seed > 0


def test_records_become_tidy(selection, measured, tmp_path):
    paths = [tmp_path / "selection.nc", tmp_path / "measured.nc"]
    write_dataset(selection, paths[0])
    write_dataset(measured, paths[1])
    features = collect_features(paths[:1], paths[1:])
    assert features.sizes["measurement"] == measured["test_accuracy"].size
    assert features.sizes["evaluation"] == selection.sizes["evaluation"]
    assert set(features["measurement_model"].values) == {"gcn"}
    one = features.isel(measurement=3)
    name, seed = str(one["method"].values), int(one["seed"])
    row = measured.sel({"method": name}).sel(seed=seed)
    assert float(one["measured_test_accuracy"]) == float(row["test_accuracy"])
    assert float(one["measured_packed_memory"]) == float(row["packed_memory"])
    for dataset in (selection, measured, features):
        for name, variable in dataset.variables.items():
            assert {"units", "long_name"} <= set(variable.attrs), name
    assert json.loads(str(one["provenance"].values))["device"] == "cpu"
    assert np.isfinite(features["baseline"].values).all()
