"""One training step as its memory sees it: forward, loss, backward, update.

Two steps are taken, and the second is told: what the first leaves, the state of an
optimiser and what layers cache, is there before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline_src.compression.memory.live_bytes import (
    Block,
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
        model: of parameters and buffers.
        data: of the input.
        state: of what a step before left: an optimiser's state, caches.
    """

    kept: tuple[Block, ...]
    moments: tuple[Moment, ...]
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
    """Take two steps with a model, and tell what the second one needs.

    Tensors may be real or fake. The model is changed as a training changes it.
    """
    own = [*model.parameters(), *model.buffers()]
    data = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    trained = [one for one in model.parameters() if one.requires_grad]
    update = optimizer(trained) if optimizer is not None and trained else None
    live = LiveBytes(model)
    live.know([*own, *data])
    kept: tuple[Block, ...] = ()
    state = 0
    with live:
        for _ in range(2):
            state += live.settle()
            live.phase = "forward"
            output = model(*args, **kwargs)
            with live.in_loss():
                value = loss(output)
            del output
            kept = live.blocks(besides=[value])
            live.phase = "backward"
            value.backward()
            del value
            if update is not None:
                live.phase = "update"
                update.step()
            moments = tuple(live.moments)
            for tensor in [*own, *data]:
                tensor.grad = None
    return StepMemory(
        kept, moments, _allocated(own), _allocated(data, besides=own), state
    )


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
