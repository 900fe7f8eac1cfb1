"""Messages evaluated by ranges: summed over the edges of a node, or as they are.

Forward forms the messages of a range, uses them and forgets them; backward forms them
again. Both are exact, given what leaves stand for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.compression.edges.messages import (
    Expression,
    Leaf,
    Mask,
    Need,
    evaluate,
    leaves,
    without_tensors,
)
from pipeline_src.compression.edges.receivers import Receivers
from pipeline_src.compression.sources import Bits, Source, whole
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch

# Values of the messages of a range.
RANGE_VALUES = 2**20
RANGE_VALUES_ON_GPU = 2**25


@dataclass(frozen=True, eq=False)
class Plan:
    """How an expression is evaluated."""

    expression: Expression
    leaves: tuple[Leaf, ...]
    row_numel: int  # values of the widest row on the way
    num_edges: int
    receivers: Receivers | None  # None: as they are, in the order of edges
    reduce: str = "sum"  # or "amax", "amin"

    @classmethod
    def of(
        cls,
        expression: Expression,
        row_numel: int,
        num_edges: int,
        receivers: Receivers | None = None,
        reduce: str = "sum",
    ) -> "Plan":
        """Find the leaves."""
        found = tuple(leaves(expression))
        return cls(expression, found, row_numel, num_edges, receivers, reduce)

    def without_tensors(self) -> "Plan":
        """For backward, which has sources of the leaves."""
        expression, found = without_tensors(self.expression, self.leaves)
        return replace(self, expression=expression, leaves=found)

    def ranges(self, device: torch.device) -> Iterator[tuple[slice, slice]]:
        """Receivers and edges of each range."""
        values = RANGE_VALUES_ON_GPU if device.type == "cuda" else RANGE_VALUES
        at_once = max(1, values // max(1, self.row_numel))
        if self.receivers is not None:
            for one in self.receivers.ranges(at_once):
                yield one.nodes, one.edges
            return
        for start in range(0, self.num_edges, at_once):
            edges = slice(start, min(start + at_once, self.num_edges))
            yield edges, edges

    def take(self, rows: Tensor, edges: slice) -> Tensor:
        """Rows of edge-sized data."""
        if self.receivers is None:
            return rows[edges]
        return self.receivers.take(rows, edges)

    def values(self, tensors: list[Tensor], edges: slice) -> list[Tensor]:
        """What leaves stand for on some edges."""
        found = []
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            if leaf.is_whole:
                found.append(tensor)
            elif leaf.index is None:
                found.append(self.take(tensor, edges))
            else:
                found.append(tensor.index_select(0, self.take(leaf.index, edges)))
        return found

    def messages(self, values: list[Tensor], edges: slice) -> Tensor:
        """The expression on some edges, from what its leaves stand for there."""
        by_leaf = {
            id(leaf): value for leaf, value in zip(self.leaves, values, strict=True)
        }

        def mask_rows(mask: Mask) -> Tensor:
            return self.take(mask.packed, edges)

        result: Tensor = evaluate(self.expression, by_leaf, mask_rows)
        return result

    def places(self, nodes: slice, edges: slice, like: Tensor) -> Tensor:
        """Receivers of a range counted from its first, in the shape of messages."""
        assert self.receivers is not None, "as they are, messages have no receiver"
        index = self.receivers.index[edges].long() - nodes.start
        return index.view(-1, *[1] * (like.ndim - 1)).expand_as(like)


Sources = tuple[Source | None, ...]  # of leaves; None: no value is needed


class Evaluate(Function):
    """Sums over edges, or the messages themselves."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, output: Tensor, sources: Sources, *tensors: Tensor
    ) -> Tensor:
        is_extreme = plan.receivers is not None and plan.reduce != "sum"
        before = output.clone() if is_extreme and any(ctx.needs_input_grad) else None
        for nodes, edges in plan.ranges(output.device):
            messages = plan.messages(plan.values(list(tensors), edges), edges)
            if plan.receivers is None:
                output[edges] = messages
            elif plan.reduce == "sum":
                places = plan.places(nodes, edges, messages)
                output[nodes].scatter_add_(0, places, messages)
            else:
                places = plan.places(nodes, edges, messages)
                output[nodes].scatter_reduce_(
                    0, places, messages, plan.reduce, include_self=False
                )
        ctx.plan, ctx.sources = plan.without_tensors(), sources
        ctx.stayed = None if before is None else Bits.of(before == output)
        ctx.references = watch(_by_reference(plan))
        ctx.shapes = [(one.shape, one.dtype) for one in tensors]
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        needed = ctx.needs_input_grad[3:]
        nothing = (None, None, None, *(None for _ in needed))
        if gradient is None:
            return nothing
        check_unchanged(ctx.references)
        stayed = None if ctx.stayed is None else whole(ctx.stayed)
        totals = leaf_gradients(plan, ctx.sources, ctx.shapes, needed, gradient, stayed)
        return None, None, None, *totals


Shapes = list[tuple[torch.Size, torch.dtype]]  # of leaves


def leaf_gradients(
    plan: Plan,
    sources: Sources,
    shapes: Shapes,
    needed: Sequence[bool],  # which leaves' gradients
    gradient: Tensor,  # of the output
    stayed: Tensor | None = None,  # where an extreme is what was there before, bool
) -> list[Tensor | None]:
    """Gradients of leaves, from messages that are formed again range by range."""
    tensors = [
        _value(source, shape, dtype, gradient.device)
        for source, (shape, dtype) in zip(sources, shapes, strict=True)
    ]
    totals = [
        torch.zeros(shape, dtype=dtype, device=gradient.device) if wanted else None
        for wanted, (shape, dtype) in zip(needed, shapes, strict=True)
    ]
    for nodes, edges in plan.ranges(gradient.device):
        if edges.start == edges.stop:
            continue
        values = [
            value.detach().requires_grad_(wanted)
            for value, wanted in zip(plan.values(tensors, edges), needed, strict=True)
        ]
        with torch.enable_grad():
            messages = plan.messages(values, edges)
        of_messages = _of_messages(
            plan, messages.detach(), gradient, nodes, edges, stayed
        )
        wanted_values = [v for v in values if v.requires_grad]
        found = iter(
            torch.autograd.grad(messages, wanted_values, of_messages, allow_unused=True)
        )
        for leaf, total in zip(plan.leaves, totals, strict=True):
            part = None if total is None else next(found)
            if part is not None and total is not None:
                _add(plan, leaf, total, part, edges)
    return totals


class EdgeProduct:
    """A sum over edges of multiples of one leaf's rows, as a map of that leaf."""

    def __init__(self, plan: Plan, sources: Sources, of: int) -> None:
        """Of the leaf at a place; sources of all others are exact."""
        self._shapes = [(leaf.tensor.shape, leaf.tensor.dtype) for leaf in plan.leaves]
        self._references = watch(_by_reference(plan))
        self._needed = [place == of for place in range(len(plan.leaves))]
        self._plan, self._sources, self._of = plan.without_tensors(), sources, of

    def transposed(self, gradient: Tensor) -> Tensor:
        """Gradient of the leaf from that of the sum, (num_receivers, any width)."""
        check_unchanged(self._references)
        shapes = list(self._shapes)
        (num_nodes, *_), dtype = shapes[self._of]
        shapes[self._of] = torch.Size((num_nodes, gradient.shape[1])), dtype
        totals = leaf_gradients(
            self._plan, self._sources, shapes, self._needed, gradient
        )
        total = totals[self._of]
        assert total is not None, "the one that is needed"
        return total


def _by_reference(plan: Plan) -> Iterator[tuple[str, Tensor | None]]:
    for leaf in plan.leaves:
        yield "an index of edges", leaf.index


def _value(
    source: Source | None, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if source is None:
        return torch.zeros((), dtype=dtype, device=device).expand(shape)
    return whole(source)


def _of_messages(
    plan: Plan,
    messages: Tensor,
    gradient: Tensor,
    nodes: slice,
    edges: slice,
    stayed: Tensor | None,
) -> Tensor:
    """Gradient of the messages of a range."""
    if plan.receivers is None:
        return gradient[edges]
    index = plan.receivers.index[edges]
    of_messages = gradient.index_select(0, index)
    if plan.reduce == "sum":
        return of_messages
    places = plan.places(nodes, edges, messages)
    extremes = torch.zeros_like(gradient[nodes])
    extremes.scatter_reduce_(0, places, messages, plan.reduce, include_self=False)
    # Those that are equal share the gradient, as they do in PyTorch, which counts the
    # value that was there before as one of them.
    hit = (messages == extremes.gather(0, places)).to(messages.dtype)
    assert stayed is not None, "a maximum whose gradient is asked for"
    count = stayed[nodes].to(messages.dtype).scatter_add_(0, places, hit)
    return of_messages * hit / count.gather(0, places)


def _add(plan: Plan, leaf: Leaf, total: Tensor, part: Tensor, edges: slice) -> None:
    """Add what a range gives to a leaf's gradient."""
    if leaf.is_whole:
        total += part
    elif leaf.index is not None:
        index = plan.take(leaf.index, edges).long()
        places = index.view(-1, *[1] * (part.ndim - 1)).expand_as(part)
        total.scatter_add_(0, places, part)
    elif plan.receivers is None or plan.receivers.order is None:
        total[edges] = part
    else:
        total[plan.receivers.order[edges].long()] = part


def sources_of(
    plan: Plan,
    needs: dict[int, Need],
    source: Callable[[Tensor], Source],
    exact: Callable[[Tensor], Source],
) -> Sources:
    """What backward reads of each leaf: nothing, an estimate, or all of it.

    What meets a nonlinear function is kept exactly: noise would bias the gradient, and
    a tensor of nodes is small beside the tensors of edges that are not kept.
    """
    found: list[Source | None] = []
    for leaf in plan.leaves:
        need = needs[id(leaf)]
        if need is Need.NOTHING:
            found.append(None)
        elif need is Need.NONLINEAR or leaf.is_whole or _is_narrow(leaf, plan):
            found.append(exact(leaf.tensor))
        else:
            found.append(source(leaf.tensor))
    return tuple(found)


def _is_narrow(leaf: Leaf, plan: Plan) -> bool:
    return leaf.row_numel * 8 <= plan.row_numel
