"""The forward pass: in one go, block by block with recomputation, or compiled.

Compiled Dropout draws numbers of its own. Where the first step after
`torch.compiler.reset()` runs under `torch._inductor.config.patch(fallback_random=True)`
it draws those of the other techniques. A budget may have Dropout computed again, and
torch.compile then draws other numbers in backward: gradients would be wrong. So
`budget` draws its masks before the graph, as the other techniques do, and keeps them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline_src.gnn.pyg.aggregation import Edges, dense
from pipeline_src.quant.references import Reference, check_unchanged, watch

MAX_COMPILATIONS = 64  # of the forward pass: one per model, graph and budget


class Network(Protocol):
    """What a pass needs of a network."""

    convolutions: nn.ModuleList
    norms: nn.ModuleList  # one less than convolutions, or none
    dropout: float
    training: bool


Block = Callable[[Network, int, Tensor, Edges, Tensor | None], Tensor]


def hidden_block(
    network: Network,
    index: int,
    x: Tensor,
    edges: Edges,
    mask: Tensor | None,  # of Dropout, (num_nodes, hidden) bool; None: drawn here
) -> Tensor:
    """Convolution, BatchNorm, ReLU, Dropout."""
    x = network.convolutions[index](x, edges)
    if len(network.norms):
        x = network.norms[index](x)
    x = torch.relu(x)
    if mask is not None:
        return x * mask * (1.0 / (1.0 - network.dropout))
    if network.training and network.dropout > 0:
        # Not functional.dropout: on a CPU that keeps its mask in float32.
        x = torch.native_dropout(x, network.dropout, True)[0]
    return x


def forward_pass(
    network: Network,
    x: Tensor,
    edges: Edges,
    masks: Sequence[Tensor] = (),  # of Dropout, one per hidden layer, or none
    block: Block = hidden_block,
) -> Tensor:
    """Logits, (num_nodes, num_classes)."""
    last = len(network.convolutions) - 1
    for index in range(last):
        x = block(network, index, x, edges, masks[index] if masks else None)
    return network.convolutions[last](x, edges)


def checkpointed_block(
    network: Network, index: int, x: Tensor, edges: Edges, mask: Tensor | None
) -> Tensor:
    """hidden_block that keeps its input alone; BatchNorm counts the batch once."""
    norms = [cast(nn.BatchNorm1d, norm) for norm in network.norms[index : index + 1]]
    parts = (network.convolutions[index], *norms)
    references = watch(
        [
            ("the input of a block", x),
            *(("the aggregation's matrix", part) for part in dense(edges)),
            *(named for part in parts for named in part.named_parameters()),
        ]
    )
    contexts = contextlib.nullcontext(), _as_in_forward(norms, references)
    return checkpoint(
        hidden_block,
        network,
        index,
        x,
        edges,
        mask,
        use_reentrant=False,
        context_fn=lambda: contexts,
    )


@contextlib.contextmanager
def _as_in_forward(
    norms: list[nn.BatchNorm1d], references: tuple[Reference, ...]
) -> Iterator[None]:
    """Compute again from the same tensors, leaving running statistics alone."""
    check_unchanged(references)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, values in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = values


@functools.cache
def compiled(budget: float) -> Callable[..., Tensor]:
    """forward_pass under torch.compile, for all networks with one memory budget.

    The budget is a setting of the whole process, so it is set while this function is
    compiled and at no other time. The backend is told apart by its identity: what one
    budget compiled is never taken for another.
    """
    from torch._dynamo import config

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._functorch import config as functorch_config
        from torch._inductor.compile_fx import compile_fx

        with functorch_config.patch(activation_memory_budget=budget):
            return compile_fx(graph, inputs)

    config.recompile_limit = max(config.recompile_limit, MAX_COMPILATIONS)
    return torch.compile(forward_pass, backend=backend, fullgraph=True, dynamic=False)
