"""What is asked of stored features in few bits, as plain frozen values.

One plan per graph and model, in three parts, so that what a job depends on is what its
rule is given: full-precision networks by blocks of seeds (a `FeatureTraining` each),
the search of bits on networks of seeds of its own, and the measurement of what was
chosen on fresh seeds. More seeds then repeat no search, and another budget trains
nothing. The Snakefile imports this module, so it stays light.

    >>> FeatureTraining("cora", "gcn", None, (0, 1, 2)).name
    'cora-gcn-s0to2'
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_src.training.spec import source_digest

# Seeds on which bits are selected; the fresh ones of the measurement count from 0.
FIRST_SELECTION_SEED = 1000


PUBLISHED = "published"  # begins the text of hyper-parameters that are all published
# May differ from the published ones, so that another network is trained.
HYPERPARAMETERS = ("hidden", "dropout", "learning_rate", "weight_decay")


@dataclass(frozen=True)
class FeatureTraining:
    """Networks of one graph and model in full precision, a block of seeds."""

    graph: str
    model: str  # gcn, agnn or gat
    epochs: int | None  # None: the published number, as below
    seeds: tuple[int, ...]
    hidden: int | None = None
    dropout: float | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The hyper-parameters that are not the published ones."""
        given = {name: getattr(self, name) for name in HYPERPARAMETERS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def hyperparameters(self) -> str:
        """What tells this training from the published one, to read.

        >>> FeatureTraining("cora", "gcn", 100, (0,)).hyperparameters
        'published, 100 epochs'
        >>> FeatureTraining("cora", "gcn", None, (0,), hidden=64).hyperparameters
        'hidden 64'
        """
        own = [f"{name} {value:g}" for name, value in self.own.items()] or [PUBLISHED]
        epochs = [] if self.epochs is None else [f"{self.epochs} epochs"]
        return ", ".join([*own, *epochs]).replace("_", " ")

    @property
    def place(self) -> str:
        """Graph, model and the hyper-parameters of its own, for names of files."""
        own = [f"{name}{value:g}" for name, value in self.own.items()]
        return "-".join([self.graph, self.model, *own])

    @property
    def name(self) -> str:
        """Name of the block's record: its place, first and last seed."""
        return f"{self.place}-s{self.seeds[0]}to{self.seeds[-1]}"

    def to_params(self) -> str:
        """JSON text, for a rule."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_params(cls, text: str) -> "FeatureTraining":
        """The inverse of `to_params`."""
        return cls(**_with_tuples(json.loads(text)))


@dataclass(frozen=True)
class FeatureSearch:
    """A search of bits on the validation nodes."""

    candidate_bits: tuple[int, ...]  # increasing
    degree_buckets: int
    least_attention_bits: int  # of attention values
    input_range: str  # of input features: of a "node", or its "support"
    attention_range: str  # of attention values: of a "receiver" or of the "tensor"
    metadata: str  # type of zero points and scales: "float32" or "bfloat16"
    max_drop: float  # percentage points of validation accuracy
    budget: int  # measured configurations of each strategy
    strategies: tuple[str, ...]  # with which the surrogate is compared
    equal_bits: int | None  # average bits of the ablation; None: no ablation
    equal_budget: int  # measured configurations of each of its granularities

    def to_params(self) -> str:
        """JSON text, for a rule."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_params(cls, text: str) -> "FeatureSearch":
        """The inverse of `to_params`."""
        return cls(**_with_tuples(json.loads(text)))


@dataclass(frozen=True)
class FeatureMeasurement:
    """What is measured on fresh seeds beside the chosen bits."""

    uniform_bits: tuple[int, ...]  # measured beside the bits that the search chose
    tuned_uniform_bits: tuple[int, ...]  # those of them that are fine-tuned as well
    fine_tuning_epochs: int  # of packed networks, and of full precision beside them

    def to_params(self) -> str:
        """JSON text, for a rule."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_params(cls, text: str) -> "FeatureMeasurement":
        """The inverse of `to_params`."""
        return cls(**_with_tuples(json.loads(text)))


@dataclass(frozen=True)
class FeaturePlan:
    """All that is asked of one graph and model."""

    selection: FeatureTraining  # what the search measures on
    blocks: tuple[FeatureTraining, ...]  # of fresh seeds
    search: FeatureSearch
    measurement: FeatureMeasurement

    @property
    def name(self) -> str:
        """Name of the plan: graph, model and hyper-parameters of its own."""
        return self.selection.place


def feature_plans(config: Mapping[str, Any]) -> list[FeaturePlan]:
    """Every graph and model whose features a checked configuration wants packed.

    Raises:
        ValueError: if two entries name the same graph, model and hyper-parameters.
    """
    plans = [
        _plan(entry, graph, model)
        for entry in config["feature_bits"]
        for graph in entry["graphs"]
        for model in entry["models"]
    ]
    for name, count in Counter(plan.name for plan in plans).items():
        if count > 1:
            raise ValueError(
                f"feature_bits: {name} occurs {count} times; a graph and a model may"
                " meet in one entry only, so merge the entries, or give one of them"
                f" other hyper-parameters: {', '.join(HYPERPARAMETERS)}"
            )
    return plans


def feature_resume_key(params: str, inputs: Iterable[str | Path]) -> str:
    """Changes with all that changes a record: what is asked and the input files."""
    text = params + source_digest(inputs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(entry: Mapping[str, Any], graph: str, model: str) -> FeaturePlan:
    def training(first: int, stop: int) -> FeatureTraining:
        seeds = tuple(range(first, stop))
        own = {name: entry[name] for name in HYPERPARAMETERS}
        return FeatureTraining(graph, model, entry["epochs"], seeds, **own)

    chunk, num_seeds = entry["seeds_per_job"], entry["seeds"]
    last = FIRST_SELECTION_SEED + entry["selection_seeds"]
    return FeaturePlan(
        selection=training(FIRST_SELECTION_SEED, last),
        blocks=tuple(
            training(first, min(first + chunk, num_seeds))
            for first in range(0, num_seeds, chunk)
        ),
        search=FeatureSearch(
            candidate_bits=tuple(sorted(entry["candidate_bits"])),
            degree_buckets=entry["degree_buckets"],
            least_attention_bits=entry["least_attention_bits"],
            input_range=entry["input_range"],
            attention_range=entry["attention_range"],
            metadata=entry["metadata"],
            max_drop=entry["max_drop"],
            budget=entry["budget"],
            strategies=tuple(entry["strategies"]),
            equal_bits=entry["equal_bits"],
            equal_budget=entry["equal_budget"],
        ),
        measurement=FeatureMeasurement(
            uniform_bits=tuple(entry["uniform_bits"]),
            tuned_uniform_bits=tuple(entry["tuned_uniform_bits"]),
            fine_tuning_epochs=entry["fine_tuning_epochs"],
        ),
    )


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
