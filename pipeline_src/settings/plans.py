"""What is asked of a search for settings of activation compression, as frozen values.

A setting is what hidden layers keep for backward: policy, bits of each layer, block
size, projection ratio. One plan per graph and model: a search whose every evaluation is
a training on selection seeds, cut into rounds, and the measurement of what was chosen
on fresh seeds. The Snakefile imports this module, so it stays light.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline_src.features.plans import FIRST_SELECTION_SEED
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec

FULL = MethodSpec("fp32", "FP32", "full")
MIB = 2**20  # bytes
_LISTS = ("policies", "bits", "rows_per_block", "projection_ratios", "strategies")


@dataclass(frozen=True)
class ActivationSearch:
    """Settings of one graph and model, judged by validation accuracy."""

    run: RunSpec  # in full precision, of the selection seeds
    policies: tuple[str, ...]  # "lean", "exact"
    bits: tuple[int, ...]  # of a hidden layer
    rows_per_block: tuple[int, ...]
    projection_ratios: tuple[int, ...]  # with policy exact
    boundaries: str
    objective: str  # memory that is to be small: "saved" or "peak"
    max_drop: float | None  # percentage points; look for the least memory
    max_memory: float | None  # MiB; look for the greatest accuracy
    strategies: tuple[str, ...]  # with which the surrogate is compared
    round_size: int  # configurations that a strategy proposes at a time

    @property
    def needs_boundaries(self) -> bool:
        """True when training reads its bin edges from the solver's table."""
        return self.boundaries == "clipped_normal"

    @property
    def layouts(self) -> tuple[str, ...]:
        """Policy and projection ratio, from the most compressed to the least."""
        ratios = sorted(self.projection_ratios, reverse=True)
        exact = (f"exact {ratio}" for ratio in ratios if "exact" in self.policies)
        return (*(policy for policy in self.policies if policy == "lean"), *exact)

    @property
    def aims(self) -> dict[str, float]:
        """What is asked for: max_drop as a share, max_memory in bytes."""
        given = {
            "max_drop": None if self.max_drop is None else self.max_drop / 100,
            "max_memory": None if self.max_memory is None else self.max_memory * MIB,
        }
        return {aim: value for aim, value in given.items() if value is not None}

    @property
    def limits(self) -> dict[str, str]:
        """The aims in words."""
        limits = {
            "max_drop": f"{self.max_drop} points",
            "max_memory": f"{self.max_memory} MiB",
        }
        return {aim: limits[aim] for aim in self.aims}

    @property
    def members(self) -> dict[str, tuple[str, str]]:
        """Strategy and aim of each search by its name.

        What the other strategies propose does not depend on the aim, so one search of
        each answers for all.
        """
        first = next(iter(self.aims))
        surrogates = {f"surrogate {aim}": ("surrogate", aim) for aim in self.aims}
        return surrogates | {name: (name, first) for name in self.strategies}

    def to_params(self) -> str:
        """JSON text, for a rule; without device and compilation."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["run"] = json.loads(self.run.to_params())
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_params(cls, text: str, *, device: str, compile: str) -> "ActivationSearch":
        """The inverse of `to_params`, completed by what the job itself knows."""
        values = json.loads(text)
        text = json.dumps(values["run"])
        run = RunSpec.from_params(text, device=device, compile=compile)
        lists = {name: tuple(values[name]) for name in _LISTS}
        return cls(**{**values, **lists, "run": replace(run, method=FULL)})


@dataclass(frozen=True)
class ActivationPlan:
    """All that is asked of one graph and model."""

    search: ActivationSearch
    rounds: int
    evaluations_per_job: int
    methods: tuple[MethodSpec, ...]  # measured beside what is chosen
    blocks: tuple[RunSpec, ...]  # in full precision, of fresh seeds

    @property
    def name(self) -> str:
        """Name of the plan: graph and model."""
        return f"{self.search.run.graph}-{self.search.run.model.name}"

    @property
    def num_parts(self) -> int:
        """Jobs that evaluate one round; the last ones may find nothing to do."""
        most = len(self.search.members) * self.search.round_size
        return math.ceil(most / self.evaluations_per_job)

    @property
    def needs_boundaries(self) -> bool:
        """True when a measured method reads its bin edges from the solver's table."""
        return self.search.needs_boundaries or any(
            method.needs_boundaries for method in self.methods
        )

    def methods_to_params(self) -> str:
        """The methods that are measured beside, as JSON text, for a rule."""
        return json.dumps([asdict(method) for method in self.methods], sort_keys=True)

    @property
    def measured(self) -> dict[str, RunSpec]:
        """Blocks of fresh seeds by the names of their records."""
        return {
            f"{self.name}-s{block.seeds[0]}to{block.seeds[-1]}": block
            for block in self.blocks
        }


def methods_from_params(text: str) -> list[MethodSpec]:
    """The inverse of `ActivationPlan.methods_to_params`."""
    return [MethodSpec.from_json(values) for values in json.loads(text)]


def activation_plans(config: Mapping[str, Any]) -> list[ActivationPlan]:
    """Every graph and model for which a checked configuration wants settings searched.

    Raises:
        ValueError: if two entries name the same graph and model.
    """
    plans = [
        _plan(config, entry, graph, model)
        for entry in config["activation_searches"]
        for graph in entry["graphs"]
        for model in entry["models"]
    ]
    names = [plan.name for plan in plans]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"activation_searches: {name} occurs {names.count(name)} times; a graph"
                " and a model may meet in one entry only, so merge the entries"
            )
    return plans


def _plan(
    config: Mapping[str, Any], entry: Mapping[str, Any], graph: str, model: str
) -> ActivationPlan:
    full = RunSpec(
        graph=graph,
        model=ModelSpec.from_config(model, config["models"][model]),
        method=FULL,
        training=TrainingSpec(**entry["training"]),
        seeds=(0,),
        device=config["device"],
        compile=config["compile"],
    )
    epochs = entry["selection_epochs"] or full.training.epochs
    last = FIRST_SELECTION_SEED + entry["selection_seeds"]
    chunk, num_seeds = entry["seeds_per_job"], entry["seeds"]
    lists = {name: tuple(entry[name]) for name in _LISTS}
    return ActivationPlan(
        search=ActivationSearch(
            run=replace(
                full,
                training=replace(full.training, epochs=epochs),
                seeds=tuple(range(FIRST_SELECTION_SEED, last)),
            ),
            boundaries=entry["boundaries"],
            objective=entry["objective"],
            max_drop=entry["max_drop"],
            max_memory=entry["max_memory"],
            round_size=entry["round_size"],
            **lists,
        ),
        rounds=entry["rounds"],
        evaluations_per_job=entry["evaluations_per_job"],
        methods=tuple(
            MethodSpec.from_json({"name": name, **config["methods"][name]})
            for name in entry["methods"]
        ),
        blocks=tuple(
            replace(full, seeds=tuple(range(first, min(first + chunk, num_seeds))))
            for first in range(0, num_seeds, chunk)
        ),
    )
