"""A small search for settings of activation compression, and made-up accuracies."""

import hashlib
from dataclasses import replace

import numpy as np
import xarray as xr

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.settings.evaluation import evaluate_settings
from pipeline_src.settings.plans import FULL, ActivationSearch
from pipeline_src.settings.space import setting_text
from pipeline_src.training.job import Job
from pipeline_src.training.spec import ModelSpec, RunSpec, TrainingSpec

GRAPH = synthetic_graph(203, num_edges=1600, num_features=20, num_classes=4, seed=1)
MODEL = ModelSpec("sage-3x8", "sage", 3, 8, 0.5, True)
TRAINING = TrainingSpec(4, 0.01, 0.0, 0.5, "cross_entropy")
SEARCH = ActivationSearch(
    run=RunSpec("made-up", MODEL, FULL, TRAINING, (1000, 1001), "cpu", "false"),
    policies=("lean", "exact"),
    bits=(2, 1, 8),
    rows_per_block=(8, 64),
    projection_ratios=(1, 4),
    boundaries="even",
    objective="saved",
    max_drop=1.0,
    max_memory=0.02,
    strategies=("random", "uniform"),
    round_size=4,
)


def made_up_accuracy(configuration) -> float:
    """In thousandths, from the configuration alone; more bits are a little better."""
    digest = hashlib.sha256(setting_text(configuration).encode()).digest()
    bits = configuration["bits of layer 1"] + configuration["bits of layer 2"]
    return (880 + bits + digest[0] % 8) / 1000


def made_up_evaluations(search, settings) -> xr.Dataset:
    """In the form of evaluate_settings, with nothing trained."""
    empty = evaluate_settings(search, [], Job(GRAPH))
    accuracy = np.repeat([[made_up_accuracy(one)] for one in settings], 2, axis=1)
    texts = [setting_text(one) for one in settings]
    return xr.Dataset(
        {"accuracy": (("setting", "seed"), accuracy.reshape(-1, 2))},
        {"setting": np.asarray(texts, str), "seed": empty["seed"]},
    )


def with_aims(**aims) -> ActivationSearch:
    return replace(SEARCH, **({"max_drop": None, "max_memory": None} | aims))
