"""A configuration expands to the lists written here by hand."""

import copy

import pytest

from pipeline_src.configuration.plans import (
    byte_book_specs,
    capture_plans,
    measurement_plans,
    run_specs,
    sizes_vary,
)

STEP = {
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "gradient_clip": None,
    "loss": "cross_entropy",
}
CONFIG = {
    "device": "cpu",
    "compile": "false",
    "models": {
        name: {
            "layer": name.split("-")[0],
            "num_layers": 2,
            "hidden": 8,
            "dropout": 0.5,
            "batch_norm": True,
        }
        for name in ("sage-2x8", "gcn-2x8")
    },
    "methods": {
        "fp32": {"label": "FP32", "policy": "full"},
        "block4": {"label": "4", "policy": "exact", "bits": 2, "rows_per_block": 4},
    },
    "sweeps": [
        {
            "graphs": ["digits", "cora"],
            "models": ["sage-2x8"],
            "methods": ["fp32", "block4"],
            "seeds": 5,
            "seeds_per_job": 2,
            "training": {"epochs": 3, **STEP},
        }
    ],
    "measurements": [
        {
            "graphs": ["digits"],
            "models": ["sage-2x8", "gcn-2x8"],
            "methods": ["fp32", "block4"],
            "timed_methods": ["fp32"],
            "warmup": 2,
            "repeats": 5,
            "gradient_draws": 3,
            "training": STEP,
        }
    ],
    "captures": [
        {
            "graphs": ["digits"],
            "models": ["gcn-2x8"],
            "method": "block4",
            "epochs": [7, 1],
            "seed": 3,
            "training": STEP,
        }
    ],
}


@pytest.fixture
def config():
    return copy.deepcopy(CONFIG)


def test_a_sweep_is_the_product_of_its_lists_in_blocks_of_seeds(config):
    assert [spec.cell for spec in run_specs(config)] == [
        "digits-sage-2x8-fp32-s0to1",
        "digits-sage-2x8-fp32-s2to3",
        "digits-sage-2x8-fp32-s4to4",
        "digits-sage-2x8-block4-s0to1",
        "digits-sage-2x8-block4-s2to3",
        "digits-sage-2x8-block4-s4to4",
        "cora-sage-2x8-fp32-s0to1",
        "cora-sage-2x8-fp32-s2to3",
        "cora-sage-2x8-fp32-s4to4",
        "cora-sage-2x8-block4-s0to1",
        "cora-sage-2x8-block4-s2to3",
        "cora-sage-2x8-block4-s4to4",
    ]


def test_a_cell_carries_all_its_values(config):
    spec = run_specs(config)[4]
    assert (spec.graph, spec.seeds) == ("digits", (2, 3))
    assert (spec.model.name, spec.model.layer) == ("sage-2x8", "sage")
    assert (spec.method.name, spec.method.rows_per_block) == ("block4", 4)
    assert (spec.training.epochs, spec.training.gradient_clip) == (3, None)
    assert (spec.device, spec.compile) == ("cpu", "false")


def test_more_seeds_or_graphs_rename_no_cell(config):
    before = {spec.cell: spec for spec in run_specs(config)}
    config["sweeps"][0].update(seeds=6, graphs=["pubmed", "cora", "digits"])
    after = {spec.cell: spec for spec in run_specs(config)}
    whole_blocks = {cell for cell in before if not cell.endswith("s4to4")}
    assert whole_blocks < set(after)
    assert all(after[cell] == before[cell] for cell in whole_blocks)


def test_a_cell_asked_for_twice_occurs_once(config):
    config["sweeps"].append({**config["sweeps"][0], "graphs": ["cora"]})
    assert len(run_specs(config)) == 12


def test_the_same_name_for_different_runs_is_refused(config):
    sweep = copy.deepcopy(config["sweeps"][0])
    sweep["training"]["epochs"] = 4
    config["sweeps"].append(sweep)
    with pytest.raises(
        ValueError, match=r"digits-sage-2x8-fp32-s0to1.*their training;"
    ):
        run_specs(config)


def test_hyphens_cannot_hide_a_clash_of_names(config):
    """sage-2x8 with x-y and sage-2x8-x with y would share one name."""
    config["models"]["sage-2x8-x"] = {**config["models"]["sage-2x8"], "hidden": 9}
    config["methods"].update(
        {"x-y": config["methods"]["block4"], "y": config["methods"]["block4"]}
    )
    config["sweeps"][0].update(models=["sage-2x8", "sage-2x8-x"], methods=["x-y", "y"])
    with pytest.raises(ValueError, match=r"two different runs .* their model, method;"):
        run_specs(config)


def test_a_seed_in_two_blocks_is_refused(config):
    config["sweeps"].append({**config["sweeps"][0], "seeds_per_job": 5})
    with pytest.raises(
        ValueError, match=r"seed 0 would be trained twice, in .*s0to1 and in .*s0to4"
    ):
        run_specs(config)


def test_a_measurement_takes_each_graph_and_model_with_all_methods(config):
    plans = measurement_plans(config)
    assert [plan.name for plan in plans] == ["digits-sage-2x8", "digits-gcn-2x8"]
    assert [spec.method.name for spec in plans[1].specs] == ["fp32", "block4"]
    assert {spec.model.name for spec in plans[1].specs} == {"gcn-2x8"}
    assert (plans[0].timed, plans[0].warmup, plans[0].repeats) == (("fp32",), 2, 5)
    assert plans[0].gradient_draws == 3
    assert {spec.training.epochs for spec in plans[0].specs} == {7}


def test_a_capture_trains_to_its_last_epoch(config):
    (plan,) = capture_plans(config)
    assert plan.name == "digits-gcn-2x8"
    assert plan.epochs == (1, 7)
    assert plan.spec.training.epochs == 7
    assert plan.spec.seeds == (3,)


@pytest.mark.parametrize(
    ("key", "plans"), [("measurements", measurement_plans), ("captures", capture_plans)]
)
def test_a_graph_and_a_model_meet_in_one_entry(config, key, plans):
    config[key].append(config[key][0])
    with pytest.raises(ValueError, match=rf"{key}: digits-\S+ occurs 2 times"):
        plans(config)


def test_byte_books_are_counted_one_row_at_a_time():
    entry = {
        "graphs": ["arxiv_shape", "products_shape"],
        "models": ["sage-2x8"],
        "methods": ["fp32", "block4"],
        "training": STEP,
    }
    specs = byte_book_specs({**CONFIG, "byte_books": [entry]})
    assert [(spec.graph, spec.method.name) for spec in specs] == [
        ("arxiv_shape", "fp32"),
        ("arxiv_shape", "block4"),
        ("products_shape", "fp32"),
        ("products_shape", "block4"),
    ]
    assert specs[1].method.rows_per_block == 4


def test_growth_needs_three_sizes_of_a_graph_or_of_a_model():
    entry = CONFIG["measurements"][0]

    def vary(graphs, models):
        asked = {**CONFIG, "measurements": [{**entry, "graphs": graphs}]}
        asked["measurements"][0]["models"] = models
        return sizes_vary(measurement_plans(asked))

    both = list(CONFIG["models"])
    assert not vary(["digits", "cora"], both)
    assert vary(["digits", "cora", "pubmed"], both[:1])
