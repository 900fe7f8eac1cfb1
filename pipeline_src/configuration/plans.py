"""What a checked configuration asks for, as lists of specifications.

A sweep names graphs, models and methods; their product, with the seeds cut into
blocks, gives the cells to train. Measurements, captures and byte books name them the
same way.
The Snakefile imports this module at every start, so it stays light.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec

MIN_SIZES = 3  # of a graph or a model; fewer show no growth
FRONT_METHODS = 5  # timed on one graph and model; fewer make no front
# With what a class is tried before it is trained.
_FULL = MethodSpec("fp32", "FP32", "full")
_STEP = TrainingSpec(1, 0.01, 0.0, None, "cross_entropy")


@dataclass(frozen=True)
class MeasurementPlan:
    """Time and memory of all methods on one graph and model, in one process."""

    specs: tuple[RunSpec, ...]  # one per method
    timed: tuple[str, ...]  # names of the methods whose epochs are timed
    warmup: int  # epochs before the clock counts
    repeats: int  # timed epochs per method
    gradient_draws: int  # gradients per method from which their error is taken

    @property
    def name(self) -> str:
        """Name of the plan's record: graph and model."""
        return f"{self.specs[0].graph}-{self.specs[0].model.name}"


@dataclass(frozen=True)
class CapturePlan:
    """The activations of one training, observed at some epochs (1 is the first)."""

    spec: RunSpec
    epochs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the plan's record: graph and model."""
        return f"{self.spec.graph}-{self.spec.model.name}"


def run_specs(config: Mapping[str, Any]) -> list[RunSpec]:
    """Every cell that the sweeps of a checked configuration ask for.

    A cell that two sweeps ask for in the same words occurs once.

    Raises:
        ValueError: if two sweeps train the same seed of the same graph, model and
            method in different cells, so that it would be counted twice.
    """
    cells: dict[str, RunSpec] = {}
    cell_of_seed: dict[tuple[str, str, str, int], str] = {}
    for sweep in config["sweeps"]:
        for spec in _cells_of_sweep(config, sweep):
            known = cells.setdefault(spec.cell, spec)
            if known != spec:
                raise ValueError(
                    f"sweeps: two different runs would both be named {spec.cell}; "
                    "they differ in their "
                    f"{_difference(known, spec)}; give a model or a method of one "
                    "another name"
                )
            for seed in spec.seeds:
                key = (spec.graph, spec.model.name, spec.method.name, seed)
                cell = cell_of_seed.setdefault(key, spec.cell)
                if cell != spec.cell:
                    raise ValueError(
                        f"sweeps: seed {seed} would be trained twice, in {cell} and in "
                        f"{spec.cell}; give both entries the same seeds_per_job"
                    )
    return list(cells.values())


def measurement_plans(config: Mapping[str, Any]) -> list[MeasurementPlan]:
    """Every measurement that a checked configuration asks for.

    Raises:
        ValueError: if two entries measure the same graph and model.
    """
    plans = [
        MeasurementPlan(
            specs=tuple(
                _spec(config, entry, graph, model, method, (0,), epochs)
                for method in entry["methods"]
            ),
            timed=tuple(entry["timed_methods"]),
            warmup=entry["warmup"],
            repeats=entry["repeats"],
            gradient_draws=entry["gradient_draws"],
        )
        for entry in config["measurements"]
        for epochs in [entry["warmup"] + entry["repeats"]]
        for graph in entry["graphs"]
        for model in entry["models"]
    ]
    _refuse_repeated_names("measurements", [plan.name for plan in plans])
    return plans


def blocks_are_measured(plans: Iterable[MeasurementPlan]) -> bool:
    """Whether a method of the published layout, whose blocks have a size, is measured.

    >>> blocks_are_measured([])
    False
    """
    return any(spec.method.policy == "exact" for plan in plans for spec in plan.specs)


def methods_compete(plans: Iterable[MeasurementPlan]) -> bool:
    """Whether some graph and model has enough timed methods for a front of them.

    >>> methods_compete([])
    False
    """
    return any(
        sum(not spec.method.without for spec in plan.specs if spec.method.name in timed)
        >= FRONT_METHODS
        for plan in plans
        for timed in [set(plan.timed)]
    )


def sizes_vary(plans: Iterable[MeasurementPlan]) -> bool:
    """Whether a model is measured on several graphs, or a graph with several models.

    >>> sizes_vary([])
    False
    """
    models = ((plan.specs[0].graph, plan.specs[0].model) for plan in plans)
    # A class has a size that nobody here knows.
    places = {(graph, model.name) for graph, model in models if not model.is_class}
    graphs, names = ([place[i] for place in places] for i in (0, 1))
    return max(map(names.count, names), default=0) >= MIN_SIZES or (
        max(map(graphs.count, graphs), default=0) >= MIN_SIZES
    )


def capture_plans(config: Mapping[str, Any]) -> list[CapturePlan]:
    """Every capture of activations that a checked configuration asks for.

    Raises:
        ValueError: if two entries observe the same graph and model.
    """
    plans = [
        CapturePlan(
            spec=_spec(
                config,
                entry,
                graph,
                model,
                entry["method"],
                (entry["seed"],),
                max(entry["epochs"]),
            ),
            epochs=tuple(sorted(entry["epochs"])),
        )
        for entry in config["captures"]
        for graph in entry["graphs"]
        for model in entry["models"]
    ]
    _refuse_repeated_names("captures", [plan.name for plan in plans])
    return plans


def class_model_specs(config: Mapping[str, Any]) -> dict[str, RunSpec]:
    """Of each class that a checked configuration trains or measures: a step of it.

    By the model's name; in full precision, on a graph that need not be there.
    """
    measured = (spec for plan in measurement_plans(config) for spec in plan.specs)
    return {
        spec.model.name: replace(
            spec, graph="synthetic", method=_FULL, seeds=(0,), training=_STEP
        )
        for spec in (*run_specs(config), *measured)
        if spec.model.is_class
    }


def byte_book_specs(config: Mapping[str, Any]) -> list[RunSpec]:
    """What a checked configuration wants counted from shapes: one run for each row.

    Raises:
        ValueError: if two entries count the same graph, model and method.
    """
    specs = [
        _spec(config, entry, graph, model, method, (0,), 1)
        for entry in config["byte_books"]
        for graph in entry["graphs"]
        for model in entry["models"]
        for method in entry["methods"]
    ]
    rows = Counter((spec.graph, spec.model.name, spec.method.name) for spec in specs)
    for row, count in rows.items():
        if count > 1:
            raise ValueError(
                f"byte_books: {'-'.join(row)} occurs {count} times; leave one out"
            )
    return specs


def _cells_of_sweep(
    config: Mapping[str, Any], sweep: Mapping[str, Any]
) -> Iterable[RunSpec]:
    chunk = sweep["seeds_per_job"]
    for graph in sweep["graphs"]:
        for model in sweep["models"]:
            for method in sweep["methods"]:
                for first in range(0, sweep["seeds"], chunk):
                    seeds = tuple(range(first, min(first + chunk, sweep["seeds"])))
                    epochs = sweep["training"]["epochs"]
                    yield _spec(config, sweep, graph, model, method, seeds, epochs)


def _spec(
    config: Mapping[str, Any],
    entry: Mapping[str, Any],
    graph: str,
    model: str,
    method: str,
    seeds: tuple[int, ...],
    epochs: int,
) -> RunSpec:
    return RunSpec(
        graph=graph,
        model=ModelSpec.from_config(model, config["models"][model]),
        method=MethodSpec.from_json({"name": method, **config["methods"][method]}),
        training=TrainingSpec.from_json({**entry["training"], "epochs": epochs}),
        seeds=seeds,
        device=config["device"],
        compile=config["compile"],
    )


def _difference(one: RunSpec, other: RunSpec) -> str:
    theirs = other.to_json()
    return ", ".join(
        key for key, value in one.to_json().items() if theirs[key] != value
    )


def _refuse_repeated_names(key: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"{key}: {name} occurs {count} times; a graph and a model "
                "may meet in one entry only, so merge the entries"
            )
