"""How the gradients of a backward graph depend on one tensor that was kept for it.

Codes are unbiased: the mean of what is decoded is what was kept. A gradient stays
unbiased where it is an affine function of the decoded tensor, given all others: every
tensor has noise of its own. So each operation behind the tensor is asked whether its
result is affine in it. What is not known to be is taken for nonlinear.

One product of a tensor with itself is let through: where a factor is an average, or a
sum, over many of its values, as in BatchNorm's backward. The two then share a part of
1 / num_averaged of their noise, and the gradient is off by the variance of a code over
that number. MIN_AVERAGED keeps LayerNorm's rows and softmax's out.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.fx import Graph, Node

MIN_AVERAGED = 256  # values in a sum that may meet one of its terms
aten = torch.ops.aten
prims = torch.ops.prims


class How(Enum):
    """What a node is of the tensor."""

    AFFINE = "a copy, scaled and moved by what is known without gradients"
    PRODUCT = "multiplied, value by value, by a gradient"
    AVERAGED = "that, summed over many values"


# Affine in their first argument, whatever the others, which must not depend on it.
_FIRST = {
    *(aten.permute.default, aten.view.default, aten.expand.default),
    *(aten.reshape.default, aten._unsafe_view.default, aten.t.default),
    *(aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim),
    *(aten.slice.Tensor, aten.select.int, aten.clone.default, aten.alias.default),
    *(aten.neg.default, aten.div.Tensor, aten.div.Scalar, aten.mul.Scalar),
    *(aten.index.Tensor, aten.gather.default, aten.index_select.default),
    *(aten.squeeze.default, aten.transpose.int),
}
# Affine in several arguments together.
_ALL: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), (0, 1)),
    aten.where.self: (1, 2),
    aten.scatter_add.default: (0, 3),
    aten.index_put.default: (0, 2),
    aten.index_add.default: (0, 3),
    aten.addmm.default: (0,),
}
_PRODUCTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mm.default, aten.bmm.default), (0, 1)),
    aten.addmm.default: (1, 2),
}
_SUMS = {
    *(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default),
}


@dataclass(frozen=True)
class Verdict:
    """Whether a tensor may be coded, and what for."""

    reason: str  # why not; "" if it may
    is_product: bool = False  # its noise goes into gradients value by value


def dependence(
    kept: Node,
    gradients: Collection[Node],
    linear: Collection[str] = (),
) -> Verdict:
    """Of all that a backward graph computes from a placeholder.

    Args:
        kept: the placeholder.
        gradients: the nodes that depend on gradients of outputs.
        linear: qualified names of operators that are linear in their first argument.
    """
    how: dict[Node, How] = {kept: How.AFFINE}
    is_product = False
    for node in kept.graph.nodes:
        depends = [one for one in node.all_input_nodes if one in how]
        if not depends or node.op == "output":
            continue
        found = _affine(node, how, gradients, linear)
        if found is None:
            return Verdict(f"{_name(node)} is not known to be linear in it")
        if found is How.PRODUCT and _averages(node, depends):
            found = How.AVERAGED
        is_product |= found is How.PRODUCT and _travels(node)
        how[node] = found
    return Verdict("", is_product)


def _affine(
    node: Node,
    how: dict[Node, How],
    gradients: Collection[Node],
    linear: Collection[str],
) -> How | None:
    """What an operation makes of the tensor; None: nothing affine, or not known."""
    arguments, target = node.args, node.target
    inside = {one for one in node.all_input_nodes if one in how}
    if node.kwargs and any(one in how for one in _nodes(node.kwargs.values())):
        return None
    if target is prims.convert_element_type.default or target is aten._to_copy.default:
        value = node.meta["val"]
        return _joined(inside, how) if value.dtype.is_floating_point else None
    if target is aten.cat.default:
        return _joined(inside, how)
    if target in _FIRST | _SUMS or _name(node).split(".")[0] in linear:
        alone = inside == {arguments[0]} and _is_used_at(node, arguments[0], (0,))
        return _joined(inside, how) if alone else None
    places = _ALL.get(target, ())
    takes = {arguments[place] for place in places if place < len(arguments)}
    if inside <= takes and all(_is_used_at(node, one, places) for one in inside):
        return _joined(inside, how)
    if target in _PRODUCTS:
        return _product(node, how, gradients)
    return None


def _product(
    node: Node, how: dict[Node, How], gradients: Collection[Node]
) -> How | None:
    left, right = (node.args[place] for place in _PRODUCTS[node.target])
    inside = [one for one in (left, right) if isinstance(one, Node) and one in how]
    if len(node.args) == 3 and node.args[0] in how:  # addmm's sum as well
        return None
    if len(inside) == 2:
        kinds = {how[one] for one in inside}
        elementwise = node.target is aten.mul.Tensor
        if not elementwise or left is right or kinds != {How.AVERAGED, How.AFFINE}:
            return None
        return How.AVERAGED
    (factor,) = inside
    other = right if factor is left else left
    if how[factor] is How.AFFINE and other in gradients:
        return How.PRODUCT
    return how[factor]


def _joined(nodes: set[Node], how: dict[Node, How]) -> How:
    kinds = {how[one] for one in nodes}
    for kind in (How.PRODUCT, How.AVERAGED):
        if kind in kinds:
            return kind
    return How.AFFINE


def _averages(node: Node, summed: list[Node]) -> bool:
    """Whether each value is a sum over MIN_AVERAGED of an argument's or more."""
    if node.target not in _SUMS | {aten.mm.default}:
        return False
    size = node.meta["val"].numel()
    return max(one.meta["val"].numel() for one in summed) >= size * MIN_AVERAGED


def _travels(node: Node) -> bool:
    """Whether a product value by value is read other than to be summed at once."""
    if node.target is not aten.mul.Tensor:
        return False
    return any(user.target not in _SUMS for user in node.users)


def _is_used_at(node: Node, one: Any, places: tuple[int, ...]) -> bool:
    """Nowhere but there, such as among indices."""
    others = [part for place, part in enumerate(node.args) if place not in places]
    return one not in set(_nodes(others))


def _nodes(parts: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg(tuple(parts), lambda one: found.append(one))
    return found


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name + (
            f".{target._overloadname}" if target._overloadname else ""
        )
    return str(target)


def behind_gradients(graph: Graph, is_gradient: Callable[[Node], bool]) -> set[Node]:
    """The nodes that depend on gradients of outputs, those among placeholders too."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            depends = is_gradient(node)
        else:
            depends = any(one in found for one in node.all_input_nodes)
        if depends:
            found.add(node)
    return found
