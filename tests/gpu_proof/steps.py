"""What one whole training step asks of a device: launches, and no waiting.

The step is the trainer's own: forward, loss, backward through autograd's engine,
optimiser. Its tensors are meta tensors, which have shapes and no data, in place of CUDA
ones: the engine refuses fake CUDA tensors where there is no device. The library's
kernels are stand-ins that give tensors of the right shape; their launches are proven
one by one elsewhere. Every other operation is seen as it is dispatched.

What makes a device wait (reading a value, a shape that depends on data, a copy between
host and device) and what mixes devices is a fault.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.lean import recipe
from pipeline_src.quant import rectified
from pipeline_src.training.networks import build_network
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer
from tests.gpu_proof.cases import NODES
from tests.gpu_proof.pretended_cuda import (
    Observer,
    is_view,
    many_tensors_at_once,
    tensors_of,
    unobserved,
)
from tests.gpu_proof.recording import recorded
from tests.gpu_proof.table import launches_allowed

DEVICE = "meta"  # stands for "cuda"
FEATURES, HIDDEN, CLASSES = 128, 128, 40  # ogbn-arxiv, three layers
METHODS = {
    "exact": MethodSpec("exact", "exact", "exact", 2, 8, 64),
    "lean": MethodSpec("lean", "lean", "lean", 2, rows_per_block=8),
}
LAYERS = ("sage", "gcn")
MOST_LAUNCHES = 60  # of a lean step of SAGE, beside products and loss

_MATMUL = {"mm", "addmm", "addmm_", "bmm", "matmul"}
_LOSS = {
    *("_log_softmax", "nll_loss_forward", "nll_loss_backward"),
    *("_log_softmax_backward_data", "index", "index_put", "_index_put_impl_"),
    "ones_like",  # where backward starts
}
_WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
    *("bincount", "histc"),
}
_MAKES_NOTHING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "lift_fresh", "resize_", "set_", "_reshape_alias"),
}


@dataclass
class Step:
    """What a step was seen to do."""

    kernels: Counter[str] = field(default_factory=Counter)  # of the library
    plain: Counter[str] = field(default_factory=Counter)  # PyTorch's operations
    products: Counter[str] = field(default_factory=Counter)  # matmul and SpMM
    loss: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def own_launches(self) -> int:
        """Of the library's kernels, each with as many as the proof allows it."""
        return sum(launches_allowed(name) * n for name, n in self.kernels.items())

    @property
    def launches(self) -> int:
        """Beside products and loss."""
        return self.own_launches + self.plain.total()

    def watch(self, action: Callable[[], Any]) -> None:
        """See all that an action dispatches."""
        with Observer(self.see):
            try:
                action()
            except (NotImplementedError, RuntimeError) as error:
                # A meta tensor has no value to read, and mixes with no other device.
                self.faults.append(f"the step stops: {error}")

    def see(self, operation: Any, arguments: Any, result: Any) -> None:
        """Note one operation that was dispatched."""
        name = operation._schema.name.partition("::")[2]
        given = tensors_of(arguments)
        on_device = [x for x in given if x.device.type == DEVICE]
        made = [x for x in tensors_of(result) if x.device.type == DEVICE]
        if not on_device and not made:
            return
        strangers = [x for x in given if x.device.type != DEVICE and x.dim()]
        if name in _WAITS or (name in ("_to_copy", "copy_") and strangers):
            self.faults.append(f"{name} makes the device wait")
        elif name == "_to_copy" and not made:
            self.faults.append("_to_copy to the host makes the device wait")
        elif strangers:
            self.faults.append(f"{name} mixes devices")
        if is_view(operation) or name in _MAKES_NOTHING:
            return
        if name in _MATMUL:
            self.products[name] += 1
        elif name in _LOSS:
            self.loss[name] += 1
        else:
            self.plain[name] += 1


class _Matrix:
    """A sparse matrix that only notes that it was multiplied."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.part = torch.empty(1, device=DEVICE)

    def crow_indices(self) -> Tensor:
        return self.part

    col_indices = values = crow_indices

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        (matrix,) = (one for one in args if isinstance(one, _Matrix))
        assert func is torch.addmm, f"{func} is no product of the aggregation"
        matrix.step.products["spmm"] += 1
        return (kwargs or {})["out"]


def traced(policy: str, layer: str, batch_norm: bool) -> Step:
    """The second step of a training, in which nothing is set up any more."""
    model = ModelSpec(f"{layer}-3x{HIDDEN}", layer, 3, HIDDEN, 0.5, batch_norm)
    training = TrainingSpec(2, 0.01, 0.0, None, "cross_entropy")
    spec = RunSpec(
        "arxiv", model, METHODS[policy], training, (0,), device="cuda", compile="true"
    )
    seen = Step()
    trainer = _trainer(spec, seen)
    with (
        many_tensors_at_once(),
        mock.patch.object(recipe, "RUN_VALUES", recipe.RUN_VALUES_ON_GPU),
        mock.patch.object(rectified, "RUN_VALUES", rectified.RUN_VALUES_ON_GPU),
        # It knows no meta device; the library only ever switches it off.
        mock.patch.object(torch, "autocast", _switched_off),
        recorded(False, unobserved) as calls,
    ):
        trainer.step(0)
        calls.clear()
        seen.products.clear()
        seen.watch(lambda: trainer.step(1))
    seen.kernels.update(call.kernel for call in calls)
    return seen


def _switched_off(*_: Any, **__: Any) -> AbstractContextManager[None]:
    return nullcontext()


def rows() -> list[dict[str, str]]:
    """Of the table of steps."""
    found = []
    for policy, layer, batch_norm in itertools.product(METHODS, LAYERS, (True, False)):
        step = traced(policy, layer, batch_norm)
        found.append(
            {
                "policy": policy,
                "layer": layer,
                "batch_norm": "yes" if batch_norm else "no",
                "launches": str(step.launches),
                "kernels": str(step.own_launches),
                "products": str(step.products.total()),
                "loss": str(step.loss.total()),
            }
        )
    return found


def _trainer(spec: RunSpec, seen: Step) -> Trainer:
    """A trainer as it makes itself, but for a graph that has no data."""
    train = torch.zeros(NODES // 2, dtype=torch.long, device=DEVICE)
    graph = SimpleNamespace(
        features=torch.empty(NODES, FEATURES, device=DEVICE),
        labels=torch.zeros(NODES, dtype=torch.long, device=DEVICE),
        train_index=train,
        num_features=FEATURES,
        num_classes=CLASSES,
        adjacency=None,
    )
    matrix: Any = _Matrix(seen)
    shares = None
    if spec.model.layer == "gcn":
        shares = torch.empty(NODES, 1, device=DEVICE)
    aggregation = Aggregation(matrix, matrix, shares)

    def build(*arguments: Any) -> Any:
        model = build_network(*arguments)
        model.aggregation = lambda _: aggregation
        return model

    with mock.patch("pipeline_src.training.trainer.build_network", build):
        return Trainer(spec, graph, None, 0)  # type: ignore[arg-type]
