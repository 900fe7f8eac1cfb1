"""Networks in full precision, whose stored features are then to be packed.

One record per block of seeds: accuracies of the best validation epoch, and all trained
parameters, so that a search and a measurement train nothing again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from pipeline_src.features.plans import FeatureTraining
from pipeline_src.features.training import train
from pipeline_src.gnn.feature_network import PUBLISHED, FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.graphs.graph import Graph
from pipeline_src.records import datasets
from pipeline_src.records.parts import read_part
from pipeline_src.training.job import Job

log = logging.getLogger(__name__)

POINTS = 100  # percentage points in a share of 1
# name: (units, long_name)
ACCURACIES = {
    "validation_accuracy": ("1", "validation accuracy"),
    "test_accuracy": ("1", "test accuracy"),
}


def train_networks(training: FeatureTraining, job: Job) -> xr.Dataset:
    """Train a block of seeds in full precision.

    Args:
        training: graph, model, epochs, seeds and hyper-parameters.
        job: with what, on the device to train on; its parts are seeds.

    Raises:
        FloatingPointError: if a training diverges, naming block, seed and epoch.

    Returns:
        Dims (seed, ...): best epoch, validation and test accuracy, and every parameter
        of the network under its own name.
    """
    graph = job.graph
    epochs = training.epochs or PUBLISHED[training.model].epochs

    def train_seed(seed: int) -> xr.Dataset:
        torch.manual_seed(seed)
        network = new_network(training, graph)
        plan = MessagePlan.of(graph.adjacency, None, network.gathered_width)
        try:
            fit = train(network, graph, plan, epochs)
        except FloatingPointError as error:
            where = f"{training.name} seed {seed}"
            raise FloatingPointError(f"{where}: {error}") from None
        log.info(
            "%s seed %d: epoch %d of %d, validation %.2f %%",
            training.name,
            seed,
            fit.epoch,
            epochs,
            POINTS * fit.validation_accuracy,
        )
        epoch = datasets.attributes("1", "epoch of best validation accuracy")
        variables: dict[str, Any] = {
            "best_epoch": ("seed", [fit.epoch], epoch),
            "validation_accuracy": _accuracy("validation", [fit.validation_accuracy]),
            "test_accuracy": _accuracy("test", [fit.test_accuracy]),
        }
        for name, parameter in network.state_dict().items():
            dims = ("seed", *(f"{name}.{axis}" for axis in range(parameter.ndim)))
            meaning = datasets.attributes("1", f"trained parameter {name}")
            variables[name] = (dims, parameter.cpu().numpy()[None], meaning)
        return xr.Dataset(variables, {"seed": seed_coord([seed])})

    attrs = {
        "training": training.to_params(),
        "hyperparameters": training.hyperparameters,
        "provenance": job.provenance_text(),
    }
    return by_seeds(training.seeds, train_seed, job).assign_attrs(attrs)


def new_network(training: FeatureTraining, graph: Graph) -> FeatureNetwork:
    """An untrained network on the device of the graph."""
    chosen = replace(PUBLISHED[training.model], **training.own)
    network = FeatureNetwork(
        training.model, graph.num_features, graph.num_classes, chosen
    )
    return network.to(graph.features.device)


def network_of(networks: xr.Dataset, index: int, graph: Graph) -> FeatureNetwork:
    """The trained network of one seed, from a record of train_networks."""
    training = FeatureTraining.from_params(networks.attrs["training"])
    network = new_network(training, graph)
    state = {
        name: torch.from_numpy(networks[name].values[index].copy())
        for name in network.state_dict()
    }
    network.load_state_dict(state)
    return network


def by_seeds(
    seeds: Sequence[int],
    make: Callable[[int], xr.Dataset],
    job: Job,
) -> xr.Dataset:
    """Join the parts of all seeds; those that are kept are not made again."""
    parts = []
    for seed in seeds:
        path = job.part(f"seed{seed}")
        if (kept := read_part(path)) is not None:
            log.info("seed %d: resumed", seed)
            parts.append(kept)
            continue
        parts.append(make(seed))
        if path is not None:
            datasets.write_dataset(parts[-1], path)
    return xr.concat(parts, "seed", data_vars="all", combine_attrs="override")


def seed_coord(seeds: list[int]) -> tuple[Any, ...]:
    """Seeds along their dimension, as xarray takes a coordinate."""
    return "seed", np.array(seeds, np.int64), datasets.attributes("1", "random seed")


def _accuracy(part: str, values: list[float]) -> tuple[Any, ...]:
    return "seed", values, datasets.attributes(*ACCURACIES[f"{part}_accuracy"])
