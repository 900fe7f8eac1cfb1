"""Bits of stored features, selected on validation nodes (SGQuant's ABS).

A configuration is judged by packed inference of networks that were trained in full
precision, mean validation accuracy over the selection seeds, nothing fine-tuned. The
search for the least packed bytes within max_drop is the method; random, greedy and
uniform searches of the same space, aim and budget are what it is compared with.

The ablation asks another question: with the nominal bytes of one uniform width, which
granularity is the most accurate? What a coarser granularity measured counts for a finer
one as well, which contains it; so the finer one has measured more.

All evaluations run in this process: one takes milliseconds to a second, far less than
a job's start. Jobs would pay where one takes minutes, on graphs of millions of nodes;
`search.bits.Search` asks and is told apart for them. Every search writes its archive
after each evaluation, so a killed one continues.
"""

import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from pipeline_src.features.networks import POINTS, network_of
from pipeline_src.features.plans import FeatureSearch, FeatureTraining
from pipeline_src.features.setting import FeatureSetting
from pipeline_src.features.space import (
    COARSER,
    GRANULARITIES,
    FeatureSpace,
    bits_to_json,
)
from pipeline_src.features.training import accuracies
from pipeline_src.gnn.feature_bits import FeatureBits
from pipeline_src.graphs.graph import Graph
from pipeline_src.quant.feature_store import FeatureStore
from pipeline_src.records import datasets
from pipeline_src.search.bits import search_bits
from pipeline_src.search.result import SearchResult
from pipeline_src.training.job import Job

ABS = "ABS"  # automatic bit selection
SEARCH_SEED = 0
AVERAGE_BITS = ("bit", "nominal bits per stored value")  # units, long name
# Packed inputs kept at a time: searches change other bits more often than these.
_KEPT_INPUTS = 8


def select_feature_bits(
    search: FeatureSearch,
    networks: xr.Dataset,  # of train_networks, of selection seeds
    job: Job,
) -> xr.Dataset:
    """Choose bits by validation accuracy alone.

    Args:
        search: the space, the aims, the budgets.
        networks: trained ones; their mean accuracy in full precision is the baseline.
        job: with what, on the device to measure on; its parts are archives of searches.

    Returns:
        Dims evaluation (all searches one after another) and choice: what was measured,
        the best so far, and the bits that are chosen, as JSON.
    """
    evaluator = _Evaluator(networks, job.graph, search)
    space, baseline = evaluator.space, float(networks["validation_accuracy"].mean())
    frames, chosen = [], {}
    for strategy in ("surrogate", *search.strategies):
        result = search_bits(
            space.search_space("combined", "packed"),
            lambda bits: evaluator.accuracy(space.table("combined", bits)),
            search.budget,
            baseline=baseline,
            seed=SEARCH_SEED,
            max_drop=search.max_drop / POINTS,
            strategy=strategy,
            path=job.part(strategy),
        )
        frames.append(_evaluations(result, strategy, "combined", space))
        if strategy == "surrogate":
            if result.best is None:
                raise ValueError(
                    f"expected bits within max_drop = {search.max_drop} points of"
                    f" {POINTS * baseline:.2f} %, but none of the"
                    f" {result.archive.sizes['evaluation']} measured are; put 32 among"
                    " candidate_bits, which loses nothing"
                )
            chosen[ABS] = space.table("combined", result.best.configuration)
    if search.equal_bits is not None:
        equal, ablation_frames = _search_equal(search, evaluator, baseline, job)
        chosen |= equal
        frames += ablation_frames
    evaluations = xr.concat(frames, "evaluation", combine_attrs="drop_conflicts")
    choice = xr.Dataset(
        coords={
            "choice": datasets.text_coord("choice", list(chosen), "method"),
            "bits": datasets.text_coord(
                "choice", [bits_to_json(b) for b in chosen.values()], "bits as JSON"
            ),
        }
    )
    attrs = {
        "search": search.to_params(),
        "training": networks.attrs["training"],
        "hyperparameters": networks.attrs["hyperparameters"],
        "baseline": baseline,
        "provenance": job.provenance_text(),
    }
    selection = evaluations.merge(choice)
    selection.attrs = attrs
    return selection


class _Evaluator:
    """Validation accuracy of packed inference, the mean over trained networks."""

    def __init__(
        self, networks: xr.Dataset, graph: Graph, search: FeatureSearch
    ) -> None:
        training = FeatureTraining.from_params(networks.attrs["training"])
        self._networks = [
            network_of(networks, index, graph) for index in range(len(training.seeds))
        ]
        # Plain kernels, with the same bits: compilation is per combination of widths.
        self._setting = FeatureSetting.of(training, graph, search, "false")
        self._graph = graph
        self._known: dict[FeatureBits, float] = {}
        self._input = functools.lru_cache(_KEPT_INPUTS)(self._pack_input)

    @property
    def space(self) -> FeatureSpace:
        return self._setting.space

    def accuracy(self, bits: FeatureBits) -> float:
        """A share; each table is measured once, whichever search asks."""
        if bits not in self._known:
            points = self._setting.points(bits)
            x = self._input(bits.bits(0, "combination"))
            reached = [
                accuracies(network, x, self._graph, self._setting.plan, points)[0]
                for network in self._networks
            ]
            self._known[bits] = float(torch.stack(reached).double().mean())
        return self._known[bits]

    def _pack_input(self, widths: tuple[int, ...]) -> FeatureStore:
        setting = self._setting
        packing = replace(setting.packing, range=setting.input_range)
        return FeatureStore.pack(
            self._graph.features, widths, packing, setting.plan.groups
        )


def _search_equal(
    search: FeatureSearch,
    evaluator: _Evaluator,
    baseline: float,
    job: Job,
) -> tuple[dict[str, FeatureBits], list[xr.Dataset]]:
    """The most accurate bits of each granularity within one nominal memory."""
    space, equal = evaluator.space, search.equal_bits
    assert equal is not None
    uniform = space.uniform(equal)
    max_memory = space.nominal_bytes(uniform)
    # accuracy, bytes, bits; uniform leaves nothing to search
    measured: dict[str, list[tuple[float, float, FeatureBits]]] = {
        "uniform": [(evaluator.accuracy(uniform), max_memory, uniform)]
    }
    frames = []
    for granularity in GRANULARITIES[1:]:

        def table(bits: Any, granularity: str = granularity) -> FeatureBits:
            return space.table(granularity, bits)

        result = search_bits(
            space.search_space(granularity, "nominal"),
            lambda bits: evaluator.accuracy(table(bits)),
            search.equal_budget,
            baseline=baseline,
            seed=SEARCH_SEED,
            max_memory=max_memory,
            path=job.part(f"equal-{granularity}"),
        )
        frames.append(_evaluations(result, "surrogate", granularity, space))
        rows = result.archive
        measured[granularity] = [
            (accuracy, memory, table(json.loads(str(text))))
            for accuracy, memory, text in zip(
                rows["accuracy"].values,
                rows["memory"].values,
                rows["configuration"].values,
                strict=True,
            )
            if memory <= max_memory
        ]
    chosen = {}
    for granularity in GRANULARITIES:
        found = [one for coarser in COARSER[granularity] for one in measured[coarser]]
        # Of equals the one of less memory; then the coarser, which comes first.
        best = max(found, key=lambda one: (one[0], -one[1]))
        chosen[equal_method(granularity, equal)] = best[2]
    return chosen, frames


def equal_method(granularity: str, bits: int) -> str:
    """Name of a granularity of the ablation.

    >>> equal_method("layer", 2)
    'layer at 2 bits'
    """
    return f"{granularity} at {bits} bits"


def _evaluations(
    result: SearchResult, strategy: str, granularity: str, space: FeatureSpace
) -> xr.Dataset:
    """Evaluations of one search as rows, with the best so far beside them."""
    archive, curve = result.archive, result.curve
    tables = [
        space.table(granularity, json.loads(str(text)))
        for text in archive["configuration"].values
    ]
    number = archive["evaluation"].values
    aim = "max_memory" if json.loads(archive.attrs["settings"])["max_memory"] else None
    rows = len(number)
    rename = {"average_bits": "memory_per_value", "best_average_bits": "best_per_value"}
    joined = xr.merge(
        [archive.drop_dims("variable"), curve], combine_attrs="drop_conflicts"
    ).rename(rename)
    average = [space.average_bits(bits) for bits in tables]
    return (
        joined.drop_vars("evaluation")
        .assign(
            average_bits=(
                "evaluation",
                np.array(average, float),
                datasets.attributes(*AVERAGE_BITS),
            )
        )
        .assign_coords(
            number=(
                "evaluation",
                number,
                datasets.attributes("1", "evaluation of search"),
            ),
            strategy=datasets.text_coord("evaluation", [strategy] * rows, "strategy"),
            granularity=datasets.text_coord(
                "evaluation", [granularity] * rows, "granularity"
            ),
            aim=datasets.text_coord(
                "evaluation", [aim or "max_drop"] * rows, "what limits the search"
            ),
        )
    )
