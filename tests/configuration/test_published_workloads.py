"""The configurations of EXACT's workloads beside the published hyper-parameters."""

from pathlib import Path

import pytest
import yaml

from pipeline_src.configuration.checks import checked_configuration, read_schema
from pipeline_src.configuration.plans import run_specs

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "config" / name for name in ("exact.yaml", "exact-batches.yaml")]

# As the files conf/*.yaml of the public code have them for Flickr: layers, hidden,
# dropout, epochs; then what the loader or the class is told. Learning rate 0.01, Adam,
# no weight decay, BatchNorm everywhere, ten runs.
SAINT = {"loader": "saint_walk", "walk_length": 2, "batch_size": 6000}
CLUSTER = {"loader": "cluster", "num_parts": 1000, "batch_size": 30}
PUBLISHED = {
    "gcn-2x256": ("gcn", 2, 256, 0.3, 400, None),
    "sage-2x256": ("sage", 2, 256, 0.3, 400, None),
    "gcnii-8x256": ("GCNII", 8, 256, 0.5, 400, {"alpha": 0.1, "theta": 0.5}),
    "saint-2x256": ("sage", 2, 256, 0.2, 15, SAINT),
    "cluster-2x256": ("sage", 2, 256, 0.2, 15, CLUSTER),
}


@pytest.fixture(scope="module")
def specs():
    schema = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    return [
        spec
        for file in FILES
        for spec in run_specs(
            checked_configuration(yaml.safe_load(file.read_text("utf-8")), schema)
        )
    ]


def test_every_workload_is_there_with_ten_seeds_of_each_method(specs):
    assert {spec.model.name for spec in specs} == set(PUBLISHED)
    for model in PUBLISHED:
        methods = {"fp32", "compress2"} | ({"exact"} - {"gcnii" in model and "exact"})
        assert {
            (spec.method.name, spec.seeds) for spec in specs if spec.model.name == model
        } == {(method, (seed,)) for method in methods for seed in range(10)}


def test_hyper_parameters_are_the_published_ones(specs):
    for spec in specs:
        kind, layers, hidden, dropout, epochs, more = PUBLISHED[spec.model.name]
        model, training = spec.model, spec.training
        if model.is_class:
            assert model.layer.endswith(f".{kind}")
            told = yaml.safe_load(model.arguments)
            sizes = {"num_layers": layers, "hidden_channels": hidden}
            assert told == {**sizes, "dropout": dropout, **more}
        else:
            found = (model.layer, model.num_layers, model.hidden, model.dropout)
            assert found == (kind, layers, hidden, dropout)
            assert model.batch_norm
            batches = training.batches and training.batches.to_json()
            ours = {"num_steps": 5} if more is SAINT else {}
            assert batches == (more and {**more, **ours})
        assert (training.epochs, training.learning_rate) == (epochs, 0.01)
        assert (training.weight_decay, training.gradient_clip) == (0.0, 0.5)
        assert training.loss == "cross_entropy"


def test_the_compressed_method_is_the_published_one(specs):
    (method,) = {spec.method for spec in specs if spec.method.name == "exact"}
    assert (method.bits, method.projection_ratio, method.rows_per_block) == (2, 8, 1)
    assert method.boundaries == "even"
