"""What one run is, as plain frozen values: no torch, no files.

A run is a *cell*: a graph, a model, a method and a block of seeds, trained by one job
in one process and kept in one record. A cell's name depends on nothing but its own
values, so cells never renumber when others are added.

    >>> method = MethodSpec("block64", "G/R = 64", "exact", 2, 8, 64, "even")
    >>> model = ModelSpec("sage-2x64", "sage", 2, 64, 0.5, True)
    >>> training = TrainingSpec(60, 0.01, 0.0, 0.5, "cross_entropy")
    >>> RunSpec("digits", model, method, training, (0, 1, 2)).cell
    'digits-sage-2x64-block64-s0to2'

Device, compilation and a method's label are part of a RunSpec, but never of the text
that decides whether a run is repeated (`to_params`): a run stays valid on another
machine and under another label, which is given when records are collected.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# (bits, block size) -> boundaries in bin units
BoundariesOf = Callable[[int, int], tuple[float, ...]]
_TUPLES = ("layer_bits", "without")  # of a method's fields
# (policy, technique) that train any class
METHODS_OF_CLASSES = (
    *(("full", "eager"), ("compress", "eager")),
    *(("pyg", "eager"), ("pyg", "autocast")),
)
# What each loader is told; a batch has batch_size of what it is cut by.
KEYS_OF_LOADER = {
    "neighbor": ("batch_size", "num_neighbors"),
    "saint_node": ("batch_size", "num_steps"),
    "saint_walk": ("batch_size", "walk_length", "num_steps"),
    "cluster": ("batch_size", "num_parts"),
}
MAX_BLOCK_SIZE = 1024  # the published kernels cap a block at this many values


@dataclass(frozen=True)
class ModelSpec:
    """A network: `num_layers` convolutions of one kind, `hidden` features between.

    Or any class, by its dotted name in place of `layer`, with arguments of its own.
    """

    name: str
    layer: str  # "sage", "gcn" or a class such as "torch_geometric.nn.GAT"
    num_layers: int
    hidden: int
    dropout: float
    batch_norm: bool
    arguments: str = ""  # of a class, as JSON
    input: str = ""  # of a class: "edges" or "matrix"

    @classmethod
    def from_config(cls, name: str, values: Mapping[str, Any]) -> "ModelSpec":
        """From what a checked configuration says of it."""
        values = dict(values)
        class_name = values.pop("class", None)
        arguments, edges = values.pop("arguments", {}), values.pop("input", "edges")
        if class_name is None:
            return cls(name, **values)
        text = json.dumps(arguments, sort_keys=True)
        return cls(name, class_name, 0, 0, 0.0, False, text, edges)

    @property
    def is_class(self) -> bool:
        """Whether it is a class of somebody else's."""
        return "." in self.layer


@dataclass(frozen=True)
class MethodSpec:
    """What an operation keeps for backward, and in which form."""

    name: str
    label: str  # as figures and tables print it
    # "full": all that PyTorch keeps; "exact": the published layout; "lean": codes of
    # hidden layers with their ends and statistics (gnn/lean); "pyg": PyTorch
    # Geometric's layers with one of PyTorch's own ways to save memory
    # (gnn/pyg/technique.py); "compress": the same layers under compress(model)
    policy: str
    bits: int = 32  # of one code; 32 means not compressed
    projection_ratio: int = 1  # num_features / num_projected (papers: D/R)
    rows_per_block: int = 1  # projected rows that share one scale (papers: G/R)
    boundaries: str = "even"  # or "clipped_normal"
    max_block_size: int = MAX_BLOCK_SIZE  # values
    layer_bits: tuple[int, ...] = ()  # of hidden layers 1, 2, ...; () for bits
    without: tuple[str, ...] = ()  # lean: ideas that are switched off, for ablation
    technique: str = "eager"  # pyg: how memory is saved
    memory_budget: float = 1.0  # pyg: share of activations that compilation may keep

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "MethodSpec":
        """From plain types, where tuples are lists."""
        tuples = {name: tuple(values[name]) for name in _TUPLES if name in values}
        return cls(**{**values, **tuples})

    @property
    def needs_boundaries(self) -> bool:
        """True when training reads its bin edges from the solver's table."""
        return self.boundaries == "clipped_normal"

    def block_size(self, width: int) -> int:
        """Values per block of rows of a width: rows_per_block of them, but capped.

        The published kernels use one thread per value of a block, hence at most 1024 of
        them; a block never holds less than a row.
        """
        return min(self.rows_per_block, max(1, self.max_block_size // width)) * width

    def bits_of(self, activation: str) -> int:
        """Bits of an activation such as layer2.input or layer1.batch_norm.

        An input takes the bits of the hidden layer it lies behind, the network's input
        those of the first.
        """
        if not self.layer_bits:
            return self.bits
        layer, part = activation.split(".")
        hidden = int(layer.removeprefix("layer")) - (1 if part == "batch_norm" else 2)
        return self.layer_bits[max(hidden, 0)]


@dataclass(frozen=True)
class BatchSpec:
    """Which loader cuts an epoch into batches, and how; fields of others are None."""

    loader: str  # a key of KEYS_OF_LOADER
    batch_size: int  # seeds, draws, roots or parts
    num_neighbors: tuple[int, ...] | None = None  # one per layer; -1 takes all
    walk_length: int | None = None
    num_steps: int | None = None  # batches of an epoch
    num_parts: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BatchSpec":
        """From plain types, where tuples are lists."""
        numbers = values.get("num_neighbors")
        return cls(**{**values, "num_neighbors": numbers and tuple(numbers)})

    def to_json(self) -> dict[str, Any]:
        """The inverse: what this loader is told, and no more."""
        values = {key: value for key, value in asdict(self).items() if value}
        if self.num_neighbors:
            values["num_neighbors"] = list(self.num_neighbors)
        return values


@dataclass(frozen=True)
class TrainingSpec:
    """Adam on the full graph, or on batches of it."""

    epochs: int
    learning_rate: float
    weight_decay: float
    gradient_clip: float | None  # largest norm of the whole gradient
    loss: str  # "cross_entropy" or "log_cross_entropy"
    batches: BatchSpec | None = None  # None: the full graph is the only batch

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingSpec":
        """From plain types; without batches where they are not named."""
        batches = values.get("batches")
        of = None if batches is None else BatchSpec.from_json(batches)
        return cls(**{**values, "batches": of})


@dataclass(frozen=True)
class RunSpec:
    """One cell: a graph, a model, a method and a block of neighbouring seeds."""

    graph: str
    model: ModelSpec
    method: MethodSpec
    training: TrainingSpec
    seeds: tuple[int, ...]
    device: str = "auto"  # "auto", "cpu" or "cuda"; resolved inside the job
    compile: str = "auto"  # "auto", "true" or "false"

    def __post_init__(self) -> None:
        first = self.seeds[0] if self.seeds else 0
        if self.seeds != tuple(range(first, first + len(self.seeds))) or first < 0:
            raise ValueError(
                "seeds must be neighbours such as (0, 1, 2), because the cell's "
                f"name gives only the first and the last; got {self.seeds}"
            )
        if not self.seeds:
            raise ValueError("seeds must name at least one seed, got none")

    @property
    def cell(self) -> str:
        """Name of the run's record, unique within a configuration."""
        seeds = f"s{self.seeds[0]}to{self.seeds[-1]}"
        return f"{self.graph}-{self.model.name}-{self.method.name}-{seeds}"

    def to_json(self) -> dict[str, Any]:
        """The specification as nested dicts of plain types, for an attribute."""
        values = asdict(self)
        values["seeds"] = list(self.seeds)
        for name in _TUPLES:
            values["method"][name] = list(values["method"][name])
        # Not named where there are none: records of full batches stay as they are.
        del values["training"]["batches"]
        if self.training.batches is not None:
            values["training"]["batches"] = self.training.batches.to_json()
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunSpec":
        """The inverse of `to_json`."""
        return cls(
            **{
                **values,
                "model": ModelSpec(**values["model"]),
                "method": MethodSpec.from_json(values["method"]),
                "training": TrainingSpec.from_json(values["training"]),
                "seeds": tuple(values["seeds"]),
            }
        )

    def to_params(self) -> str:
        """What decides a record, as JSON text: no label, device or compilation."""
        return params_of(self.to_json())

    @classmethod
    def from_params(
        cls, text: str, *, device: str = "auto", compile: str = "auto"
    ) -> "RunSpec":
        """The inverse of `to_params`, completed by what the job itself knows.

        The method is labelled by its name.
        """
        values = json.loads(text)
        values["method"]["label"] = values["method"]["name"]
        return cls.from_json({**values, "device": device, "compile": compile})


def params_of(values: Mapping[str, Any]) -> str:
    """`to_params` of a RunSpec as JSON, of whatever version of this class."""
    left_out = ("device", "compile")
    kept = {name: value for name, value in values.items() if name not in left_out}
    method = dict(values["method"])
    del method["label"]
    return json.dumps({**kept, "method": method}, sort_keys=True)


def source_digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the files' names and contents, in an order of their own.

    The name counts without its folder, so that a moved checkout keeps its digest.
    """
    digest = hashlib.sha256()
    for path in sorted(map(Path, paths), key=lambda path: (path.name, str(path))):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def resume_key(spec: RunSpec, inputs: Iterable[str | Path | None]) -> str:
    """Changes with all that changes a record: the specification and its input files.

    An input that the run does not need is None or empty.
    """
    text = spec.to_params() + source_digest(filter(None, inputs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
