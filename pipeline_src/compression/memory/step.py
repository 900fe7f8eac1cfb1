"""One training step as its memory sees it: forward, loss, backward, update.

A step as it is in the midst of a training is told: the state of the optimiser is there,
and so is what layers cache, which costs a second step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline_src.compression.memory.live_bytes import (
    Block,
    Change,
    LiveBytes,
    Moment,
    rounded,
)
from pipeline_src.compression.memory.sparse_parts import storages

Loss = Callable[[Any], Tensor]
MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class StepMemory:
    """Bytes of one training step.

    Args:
        kept: storages that forward and loss made, alive when backward begins.
        moments: all operations, in order.
        changes: all storages that came or went, in order.
        model: of parameters and buffers.
        data: of the input.
        state: of what a step before left: an optimiser's state, caches.
    """

    kept: tuple[Block, ...]
    moments: tuple[Moment, ...]
    changes: tuple[Change, ...]
    model: int
    data: int
    state: int

    @property
    def saved(self) -> int:
        """Bytes kept for backward."""
        return sum(block.allocated for block in self.kept)

    @property
    def peak(self) -> int:
        """The most that is alive at once, above what was there before the step."""
        return max((moment.peak for moment in self.moments), default=0)

    @property
    def resident(self) -> int:
        """Model and data."""
        return self.model + self.data

    @property
    def needed(self) -> int:
        """What a device must have for it."""
        return self.resident + self.state + self.peak


def mean_square(output: Any) -> Tensor:
    """A loss for whatever a model returns; it keeps as much as cross entropy does."""
    found = [
        one.square().mean()
        for one in tree_leaves(output)
        if isinstance(one, Tensor) and one.requires_grad
    ]
    if not found:
        raise ValueError(
            "the model returned nothing that needs gradients; give a loss that takes "
            "what it returns"
        )
    return torch.stack(found).sum() if len(found) > 1 else found[0]


def follow_step(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss: Loss = mean_square,
    optimizer: MakeOptimizer | None = None,
) -> StepMemory:
    """Take steps with a model, and tell what one in the midst of training needs.

    Tensors may be real or fake. The model is changed as a training changes it.
    """
    own = [*model.parameters(), *model.buffers()]
    data = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    trained = [one for one in model.parameters() if one.requires_grad]
    live = LiveBytes(model)
    live.know([*own, *data])
    with live:
        update = optimizer(trained) if optimizer is not None and trained else None
        if update is not None:
            live.phase = "update"
            for one in trained:
                one.grad = torch.zeros_like(one)
            update.step()  # makes its state
            _forget_gradients(trained)
        state = live.settle()
        step = _step(live, model, args, kwargs, loss, update)
        _forget_gradients([*own, *data])
        if (cached := live.settle()) > 0:
            # Layers have kept something for steps to come: this was no usual step.
            state += cached
            step = _step(live, model, args, kwargs, loss, update)
            _forget_gradients([*own, *data])
    return StepMemory(*step, _allocated(own), _allocated(data, besides=own), state)


def _step(
    live: LiveBytes,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss: Loss,
    update: torch.optim.Optimizer | None,
) -> tuple[tuple[Block, ...], tuple[Moment, ...], tuple[Change, ...]]:
    """Take one step: what was kept for backward, moments, changes."""
    live.phase = "forward"
    output = model(*args, **kwargs)
    with live.in_loss():
        value = loss(output)
    outputs = [one for one in tree_leaves(output) if isinstance(one, Tensor)]
    live.belongs_to_loss(outputs)  # if anything keeps it, the loss does
    del output, outputs
    kept = live.blocks(besides=[value])
    live.phase = "backward"
    value.backward()
    del value
    if update is not None:
        live.phase = "update"
        update.step()
    return kept, tuple(live.moments), tuple(live.changes)


def _forget_gradients(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None


def _allocated(tensors: list[Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Bytes behind tensors, each storage counted once."""
    seen = {storage._cdata for one in besides for storage in storages(one)}
    total = 0
    for tensor in tensors:
        for storage in storages(tensor):
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                total += rounded(storage.nbytes())
    return total
