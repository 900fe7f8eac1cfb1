"""What selected bits cost and reach, on networks of seeds that selected nothing.

Test accuracy appears here for the first time, once per method and seed, beside full
precision's from the same weights: as they were trained, and after as many epochs of
fine-tuning as the packed networks get, selected by the same rule. Only beside the
latter does a tuned network's drop tell of packing alone. Bytes come in three kinds, see
space.py, and as the measured peak of inference: the input features and what a
pass needs above them.

Uniform bits are what one gets without choosing: one width everywhere, but at least four
bits of attention, whose ranges are of a receiver, however little of it the search may
keep.
"""

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pipeline_src.features.networks import (
    ACCURACIES,
    by_seeds,
    network_of,
    seed_coord,
)
from pipeline_src.features.plans import (
    FeatureMeasurement,
    FeatureSearch,
    FeatureTraining,
)
from pipeline_src.features.selection import ABS, AVERAGE_BITS
from pipeline_src.features.setting import FeatureSetting
from pipeline_src.features.space import bits_from_json, bits_to_json
from pipeline_src.features.training import fine_tune
from pipeline_src.gnn.feature_bits import LEAST_ATTENTION_BITS, FeatureBits
from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.graph import Graph
from pipeline_src.quant.feature_store import FeatureStore
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.quant.sparse_rows import SparseRows
from pipeline_src.records import datasets
from pipeline_src.training.job import Job
from pipeline_src.training.meters import measure_memory

log = logging.getLogger(__name__)

TUNED = " tuned"  # ends the name of a method that was fine-tuned
METHOD_SCALARS = {
    "average_bits": AVERAGE_BITS,
    "nominal_memory": ("byte", "stored values times their bits"),
    "packed_memory": ("byte", "stored features with metadata, index and padding"),
    "peak_memory": ("byte", "input features and peak of inference above them"),
}
PLACE_SCALARS = {
    "full_memory": ("byte", "stored values as float32"),
    "full_peak_memory": ("byte", "peak of inference in float32, input included"),
    "input_memory": ("byte", "input features as float32"),
    "csr_memory": ("byte", "input features as lossless compressed sparse rows"),
}


def measure_feature_bits(
    measurement: FeatureMeasurement,
    networks: xr.Dataset,  # of train_networks, of fresh seeds
    selection: xr.Dataset,  # of select_feature_bits
    job: Job,
    *,
    compile: str = "auto",
) -> xr.Dataset:
    """Measure what was chosen, and uniform bits, on networks that chose nothing.

    Args:
        measurement: what to measure beside the chosen bits, and how long to tune.
        networks: trained ones of seeds that the selection does not know.
        selection: the chosen bits.
        job: with what, on the device to measure on; its parts are seeds.
        compile: "auto", "true" or "false"; changes no accuracy.

    Returns:
        Dims (method, seed): accuracies; dim seed: those of full precision, as trained
        and tuned; dim method: bytes; without dims: the bytes of full precision and of
        the lossless sparse input.

    Raises:
        ValueError: if a network's seed helped to select the bits.
    """
    graph = job.graph
    search = FeatureSearch.from_params(selection.attrs["search"])
    training = FeatureTraining.from_params(networks.attrs["training"])
    known = FeatureTraining.from_params(selection.attrs["training"]).seeds
    if again := set(training.seeds) & set(known):
        raise ValueError(f"seeds must be fresh, but bits were selected on {again}")
    fused = resolve_compile(compile, job.device)
    chosen = FeatureSetting.of(training, graph, search, fused)
    uniform = chosen
    if (plain := _of_uniform_bits(search)) != search:
        uniform = FeatureSetting.of(training, graph, plain, fused)
    methods = _methods(measurement, selection, chosen, uniform)

    def measure_seed(seed: int) -> xr.Dataset:
        network = network_of(networks, training.seeds.index(seed), graph)
        reached_by = {  # methods may have chosen the same bits
            one: _measured(network, graph, one, seed)
            for one in dict.fromkeys(methods.values())
        }
        reached = np.array([reached_by[one] for one in methods.values()])
        full = _full_tuned(network, graph, measurement.fine_tuning_epochs, seed)
        log.info("%s seed %d: %d methods", training.name, seed, len(methods))
        variables: dict[str, Any] = {}
        for column, (name, (units, meaning)) in enumerate(ACCURACIES.items()):
            variables[name] = (
                ("method", "seed"),
                reached[:, [column]],
                datasets.attributes(units, meaning),
            )
            variables[f"full_tuned_{name}"] = (
                "seed",
                [full[column]],
                datasets.attributes(units, f"{meaning} in full precision, tuned"),
            )
        return xr.Dataset(variables, {"seed": seed_coord([seed])})

    record = by_seeds(training.seeds, measure_seed, job)
    network = network_of(networks, 0, graph)
    for name in ACCURACIES:
        record[f"full_{name}"] = networks[name].assign_attrs(
            long_name=f"{networks[name].attrs['long_name']} in full precision"
        )
    record = record.assign(_bytes(network, graph, methods))
    texts = [bits_to_json(method.bits) for method in methods.values()]
    record = record.assign_coords(
        method=datasets.text_coord("method", list(methods), "method"),
        bits=datasets.text_coord("method", texts, "bits as JSON"),
    )
    return record.assign_attrs(
        measurement=measurement.to_params(),
        training=networks.attrs["training"],
        hyperparameters=networks.attrs["hyperparameters"],
        provenance=job.provenance_text(),
    )


@dataclass(frozen=True)
class _Method:
    setting: FeatureSetting
    bits: FeatureBits
    epochs: int = 0  # of fine-tuning


def _of_uniform_bits(search: FeatureSearch) -> FeatureSearch:
    """How uniform bits are stored, whatever the search may do to attention."""
    return replace(
        search,
        candidate_bits=tuple(sorted({*search.candidate_bits, LEAST_ATTENTION_BITS})),
        attention_range="receiver",
        least_attention_bits=LEAST_ATTENTION_BITS,
    )


def _methods(
    measurement: FeatureMeasurement,
    selection: xr.Dataset,
    chosen: FeatureSetting,
    uniform: FeatureSetting,
) -> dict[str, _Method]:
    epochs = measurement.fine_tuning_epochs
    methods = {}
    names = selection["choice"].values
    for name, text in zip(names, selection["bits"].values, strict=True):
        method = _Method(chosen, bits_from_json(str(text)))
        methods[str(name)] = method
        if name == ABS and epochs:
            methods[f"{name}{TUNED}"] = replace(method, epochs=epochs)
    for width in measurement.uniform_bits:
        name = f"uniform {width}"
        method = _Method(uniform, uniform.space.uniform(width))
        methods[name] = method
        if width in measurement.tuned_uniform_bits and epochs:
            methods[f"{name}{TUNED}"] = replace(method, epochs=epochs)
    return methods


def _measured(
    network: FeatureNetwork,
    graph: Graph,
    method: _Method,
    seed: int,
) -> tuple[float, float]:
    """Validation and test accuracy of packed inference, after tuning a copy."""
    points = method.setting.points(method.bits)
    return _tuned(network, graph, method.setting.plan, points, method.epochs, seed)


def _full_tuned(
    network: FeatureNetwork, graph: Graph, epochs: int, seed: int
) -> tuple[float, float]:
    """The same of full precision, which is tuned like a packed network; else NaN."""
    if epochs == 0:
        return np.nan, np.nan  # nothing is tuned, so there is nothing to compare with
    plan = MessagePlan.of(graph.adjacency, None, network.gathered_width)
    return _tuned(network, graph, plan, None, epochs, seed)


def _tuned(
    network: FeatureNetwork,
    graph: Graph,
    plan: MessagePlan,
    points: QuantizedPoints | None,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Tune a copy; one rule for packed networks and for full precision."""
    torch.manual_seed(seed)  # dropout of fine-tuning
    fit = fine_tune(copy.deepcopy(network), graph, plan, points, epochs)
    return fit.validation_accuracy, fit.test_accuracy


def _bytes(
    network: FeatureNetwork, graph: Graph, methods: dict[str, _Method]
) -> dict[str, Any]:
    """Variables of METHOD_SCALARS and PLACE_SCALARS."""
    plain = MessagePlan.of(graph.adjacency, None, network.gathered_width)
    rows = []
    for method in methods.values():
        setting, bits = method.setting, method.bits
        space, points = setting.space, setting.points(bits)
        x = network.pack_input(graph.features, setting.plan, points)
        rows.append(
            (
                space.average_bits(bits),
                space.nominal_bytes(bits),
                space.packed_bytes(bits),
                _inference_peak(network, x, setting.plan, points),
            )
        )
    columns = np.array(rows, float).T
    of_methods = {
        name: ("method", column, datasets.attributes(*meaning))
        for (name, meaning), column in zip(METHOD_SCALARS.items(), columns, strict=True)
    }
    of_place = (
        space.full_bytes,
        _inference_peak(network, graph.features, plain, None),
        graph.features.nbytes,
        SparseRows.of(graph.features).nbytes,
    )
    return of_methods | {
        name: ((), float(value), datasets.attributes(*meaning))
        for (name, meaning), value in zip(PLACE_SCALARS.items(), of_place, strict=True)
    }


@torch.no_grad()
def _inference_peak(
    network: FeatureNetwork,
    x: Tensor | FeatureStore,
    plan: MessagePlan,
    points: QuantizedPoints | None,
) -> int:
    """Bytes of the input features and the most that one pass needs above them."""
    network.eval()

    def infer() -> Tensor:
        return network(x, plan, points)

    infer()  # compilation and lazy initialisation are not counted
    device = plan.row_pointer.device
    return x.nbytes + measure_memory(infer, device)[1].peak
