"""One training: a specification and a graph in, a record out.

The training step follows EXACT and its block-wise successor: full batch, Adam, clipped
gradients, evaluation after every epoch in full precision, test accuracy reported at the
epoch of the best validation accuracy. The loop never waits for the device: losses and
accuracies stay there until progress is reported.

Everything random comes from the seed of the run: the parameters and Dropout from
torch's generators, rounding and projections from a table of seeds drawn at the start.
Methods that are run with the same seed start from the same parameters and drop the same
activations, so they can be compared in pairs.
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from pipeline_src.experiment import records
from pipeline_src.experiment.meters import (
    StepClock,
    allocated_bytes,
    measure_memory,
    resident_bytes,
)
from pipeline_src.experiment.spec import MethodSpec, RunSpec
from pipeline_src.gnn.graphs import Graph
from pipeline_src.gnn.lean import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork, Keep
from pipeline_src.gnn.pyg_network import COMPILED, PygNetwork
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.quant.projection import count_projected

# (bits, block size) -> boundaries in bin units
BoundariesOf = Callable[[int, int], tuple[float, ...]]

LOG_LOSS_OFFSET = 1 - math.log(2)  # of the log cross entropy, EXACT's training script
PROGRESS_REPORTS = 10  # per training

log = logging.getLogger(__name__)


def train_run(
    spec: RunSpec,
    graph: Graph,
    boundaries_of: BoundariesOf | None = None,
    *,
    source_digest: str = "not recorded",
    partial_dir: Path | None = None,
) -> xr.Dataset:
    """Train every seed of a cell and return its record.

    Args:
        spec: what to train.
        graph: on any device; it is copied to the one of the spec.
        boundaries_of: solved boundaries; needed by methods that do not round evenly.
        source_digest: goes into the record as provenance.
        partial_dir: where each finished seed is kept until all are. A later call with
            the same arguments and folder trains only the seeds that are missing, so
            the folder's name must change with everything that changes a record.

    Raises:
        ValueError: if the specification cannot be trained, naming what is missing.
        FloatingPointError: if the loss or an activation stops being finite.
    """
    device = resolve_device(spec.device)
    graph = graph.to(device)
    provenance = records.describe_provenance(
        source_digest, describe_device(device), torch.get_num_threads()
    )
    memory: dict[str, float] | None = None
    parts = []
    for seed in spec.seeds:
        path = partial_dir / f"seed{seed}.nc" if partial_dir else None
        if path is not None and path.exists():
            log.info("%s seed %d: resumed", spec.cell, seed)
            parts.append(records.read_dataset(path))
            continue
        if memory is None:
            memory = measure_step_memory(Trainer(spec, graph, boundaries_of, seed))
        scalars, curves = _train_seed(Trainer(spec, graph, boundaries_of, seed))
        part = records.run_record(
            json.dumps(spec.to_json(), sort_keys=True),
            provenance,
            (seed,),
            scalars | memory,
            {name: curve[None] for name, curve in curves.items()},
        )
        if path is not None:
            records.write_dataset(part, path)
        parts.append(part)
    return xr.concat(parts, dim="seed", data_vars="all", combine_attrs="override")


class Trainer:
    """A model, its optimiser and its data on one device, ready to take steps."""

    def __init__(
        self,
        spec: RunSpec,
        graph: Graph,  # on the device to train on
        boundaries_of: BoundariesOf | None,
        seed: int,
        keep: Keep | None = None,  # replaces what the method of the spec keeps
    ) -> None:
        """Seed torch's global generators and build what the specification names."""
        torch.manual_seed(seed)
        self.spec = spec
        self.seed = seed
        self.graph = graph
        self.device = graph.features.device
        compile = resolve_compile(spec.compile, self.device)
        self.model = build_network(spec, graph, boundaries_of, compile, keep)
        self.aggregation = self.model.aggregation(graph.adjacency)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=spec.training.learning_rate,
            weight_decay=spec.training.weight_decay,
        )
        # Drawn on the CPU, so that every device rounds alike.
        generator = torch.Generator().manual_seed(seed)
        size = (spec.training.epochs, self.model.num_seeds)
        seeds = torch.randint(-(2**31), 2**31, size, generator=generator)
        self.seeds = seeds.to(torch.int32).to(self.device)

    def logits(self, epoch: int) -> Tensor:
        """Logits of the training nodes in training mode, (num_train, num_classes)."""
        self.model.train()
        seeds = self.seeds[epoch] if self.model.num_seeds else None
        output = self.model(self.graph.features, self.aggregation, seeds)
        return output[self.graph.train_index]

    def step(self, epoch: int) -> Tensor:
        """One training step; returns the loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        labels = self.graph.labels[self.graph.train_index]
        loss = training_loss(self.logits(epoch), labels, self.spec.training.loss)
        loss.backward()
        if self.spec.training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.spec.training.gradient_clip
            )
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Train, validation and test accuracy, (3,), still on the device."""
        self.model.eval()
        output = self.model(self.graph.features, self.aggregation)
        is_right = (output.argmax(dim=1) == self.graph.labels).to(torch.float32)
        return torch.stack([is_right[index].mean() for index in _splits(self.graph)])


def build_network(
    spec: RunSpec,
    graph: Graph,
    boundaries_of: BoundariesOf | None,
    compile: str,
    keep: Keep | None = None,  # replaces what the method of the spec keeps
) -> GraphNetwork | PygNetwork:
    """The network of a specification, on the device of the graph.

    Raises:
        ValueError: if the method asks for torch.compile and nothing may be compiled.
    """
    model, method, device = spec.model, spec.method, graph.features.device
    shape: dict[str, Any] = {
        "layer": model.layer,
        "num_features": graph.num_features,
        "hidden": model.hidden,
        "num_classes": graph.num_classes,
        "num_layers": model.num_layers,
        "dropout": model.dropout,
        "batch_norm": model.batch_norm,
    }
    network: GraphNetwork | PygNetwork
    if method.policy == "pyg" and keep is None:
        if method.technique in COMPILED and compile == "false":
            raise ValueError(
                f"method {method.name} is torch.compile itself, but compile is false "
                "or no compiler was found; set compile: auto and install g++"
            )
        network = PygNetwork(
            **shape,
            technique=method.technique,
            bits=method.bits,
            memory_budget=method.memory_budget,
        )
    else:
        network = GraphNetwork(
            **shape,
            keep=keep or keep_of(method, boundaries_of, compile, device),
            compile=compile,
            lean=lean_of(method, compile),
        )
    return network.to(device)


def training_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Mean loss over nodes.

    "log_cross_entropy" is mean(log(e + CE) - log e) with e = 1 - ln 2: it grows slowly
    for nodes that are badly wrong (the training script of EXACT).

    Raises:
        ValueError: if kind is unknown.
    """
    if kind == "cross_entropy":
        return functional.cross_entropy(logits, labels)
    if kind == "log_cross_entropy":
        loss = functional.cross_entropy(logits, labels, reduction="none")
        return (torch.log(LOG_LOSS_OFFSET + loss) - math.log(LOG_LOSS_OFFSET)).mean()
    raise ValueError(
        f"loss must be 'cross_entropy' or 'log_cross_entropy', got {kind!r}"
    )


def keep_of(
    method: MethodSpec,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> Keep | None:
    """What a method keeps of each activation; None if it is not asked that way.

    Raises:
        ValueError: if the method needs solved boundaries and none are given.
    """
    if method.policy != "exact":
        return None
    if method.needs_boundaries and boundaries_of is None:
        raise ValueError(
            f"method {method.name} reads its boundaries from the solver's table; pass "
            "boundaries_of=read_boundaries(path)"
        )

    def keep(name: str, width: int, may_project: bool) -> Compressor:
        ratio = method.projection_ratio if may_project else 1
        size = block_size(count_projected(width, ratio), method)
        boundaries = None
        if method.needs_boundaries and boundaries_of is not None:
            boundaries = torch.tensor(boundaries_of(method.bits, size))
        compressor = Compressor(method.bits, size, ratio, boundaries, compile)
        return compressor.to(device)

    return keep


def lean_of(method: MethodSpec, compile: str) -> LeanRecipe | None:
    """How a method with policy lean keeps hidden layers; None for other policies."""
    if method.policy != "lean":
        return None
    return LeanRecipe(method.bits, method.rows_per_block, compile)


def block_size(width: int, method: MethodSpec) -> int:
    """Values per block: rows_per_block whole rows, capped as published.

    The published kernels use one thread per value of a block, hence at most 1024 of
    them; a block never holds less than a row.
    """
    rows = min(method.rows_per_block, max(1, method.max_block_size // width))
    return rows * width


def measure_saved_memory(trainer: Trainer) -> tuple[int, int]:
    """Bytes kept for backward: by the published definition, and with the loss side.

    The published definition: what is alive after a forward pass and the loss, less the
    logits of the training nodes and the loss itself. Where training uses the log cross
    entropy it takes nll_loss on raw logits, which keeps the targets alone. With the
    loss side: all that is alive once the loss that is trained on has been formed.
    """
    labels, index = trainer.graph.labels, trainer.graph.train_index
    kind = trainer.spec.training.loss
    logits, forward = measure_memory(lambda: trainer.logits(0), trainer.device)
    loss, trained = measure_memory(
        lambda: training_loss(logits, labels[index], kind), trainer.device
    )
    # The logits are kept by nothing but this function.
    kept = forward.held - allocated_bytes(logits.nbytes)
    with_loss = kept + trained.held
    if kind == "log_cross_entropy":
        del loss
        loss, trained = measure_memory(
            lambda: functional.nll_loss(logits, labels[index]), trainer.device
        )
    return kept + trained.held - allocated_bytes(loss.nbytes), with_loss


def measure_step_memory(trainer: Trainer) -> dict[str, float]:
    """Bytes of one training step; the trainer takes two steps for it.

    Returns:
        saved_memory and saved_memory_with_loss, see measure_saved_memory; peak_memory:
        the most that is alive during a step, less model and data; resident_memory:
        model and data.
    """
    trainer.step(0)  # compiles, and makes the optimiser's state
    trainer.optimizer.zero_grad(set_to_none=True)
    saved, with_loss = measure_saved_memory(trainer)
    state = [
        value
        for values in trainer.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    _, step = measure_memory(lambda: trainer.step(0), trainer.device)
    return {
        "saved_memory": saved,
        "saved_memory_with_loss": with_loss,
        "peak_memory": step.peak + resident_bytes(state),
        "resident_memory": resident_bytes(_resident(trainer)),
    }


def resolve_device(device: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means on this machine.

    Raises:
        ValueError: if device is none of these, or "cuda" and there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU; set device: auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def describe_device(device: torch.device) -> str:
    """Name of the device for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _train_seed(trainer: Trainer) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Train to the end: scalars and curves, named as in the run record."""
    epochs = trainer.spec.training.epochs
    losses = torch.empty(epochs, device=trainer.device)
    accuracies = torch.empty(epochs, 3, device=trainer.device)
    clock = StepClock(trainer.device)
    interval = max(1, epochs // PROGRESS_REPORTS)
    for epoch in range(epochs):
        with clock:
            losses[epoch] = trainer.step(epoch)
        accuracies[epoch] = trainer.evaluate()
        if (epoch + 1) % interval == 0 or epoch + 1 == epochs:
            _report(trainer, epoch, losses, accuracies)
    train, validation, test = accuracies.T.double().cpu().numpy()
    best = int(validation.argmax())
    labels = trainer.graph.labels[trainer.graph.test_index]
    scalars = {
        "test_accuracy": float(test[best]),
        "validation_accuracy": float(validation[best]),
        "best_epoch": float(best + 1),
        "epoch_time": clock.median(),
        "chance_accuracy": float(labels.bincount().max() / labels.numel()),
        "num_test_nodes": float(labels.numel()),
    }
    curves = {
        "loss_curve": losses.double().cpu().numpy(),
        "train_accuracy_curve": train,
        "validation_accuracy_curve": validation,
        "test_accuracy_curve": test,
    }
    return scalars, curves


def _report(trainer: Trainer, epoch: int, losses: Tensor, accuracies: Tensor) -> None:
    """Log progress, and stop where numbers are no longer finite."""
    where = f"{trainer.spec.cell} seed {trainer.seed}"
    try:
        trainer.model.check_finite()
    except FloatingPointError as error:
        raise FloatingPointError(f"{where}: {error}") from None
    loss = float(losses[epoch])
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{where}: the loss is {loss} after epoch {epoch + 1}. Lower learning_rate "
            "or set gradient_clip."
        )
    _, validation, test = accuracies[epoch].tolist()
    log.info(
        "%s: epoch %d of %d, loss %.4f, validation %.2f %%, test %.2f %%",
        where,
        epoch + 1,
        trainer.spec.training.epochs,
        loss,
        100 * validation,
        100 * test,
    )


def _splits(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    return graph.train_index, graph.validation_index, graph.test_index


def _resident(trainer: Trainer) -> list[Tensor]:
    """Tensors of model and data."""
    graph = trainer.graph
    adjacencies = [graph.adjacency, graph.adjacency.transposed or graph.adjacency]
    return [
        *trainer.model.parameters(),
        *trainer.model.buffers(),
        trainer.seeds,
        graph.features,
        graph.labels,
        *_splits(graph),
        *(tensor for part in adjacencies for tensor in (part.row_pointer, part.column)),
        *trainer.aggregation.tensors(),
    ]
