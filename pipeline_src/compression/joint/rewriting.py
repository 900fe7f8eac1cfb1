"""The pass: what forward hands to backward leaves it as codes and bits.

It runs when the compiler has split the joint graph of a step, so that which tensors
are kept, and what is computed again, is the compiler's choice; then

* masks that backward would compute from kept floats, such as ReLU's, are computed in
  forward, where they cost nothing, and no longer need these floats;
* booleans are kept at one bit per value;
* floats whose every use in backward is affine are kept as codes (dependence.py);
* the rest stays what it was, and is listed with the reason.

Inputs, parameters, and views of them are no activations: they are kept by reference.
"""

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline_src.compression.config import Codes
from pipeline_src.compression.joint.dependence import behind_gradients, dependence
from pipeline_src.compression.joint.operators import new_site

aten = torch.ops.aten
ours = torch.ops.pipeline_src
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_VIEWS = {
    *(aten.view.default, aten.permute.default, aten.select.int, aten.slice.Tensor),
    *(aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims),
    *(aten.t.default, aten.transpose.int, aten.alias.default, aten.reshape.default),
}


@dataclass(frozen=True)
class KeptTensor:
    """What became of one tensor that forward hands to backward.

    Attributes:
        name: of the tensor in the compiler's graph.
        shape, dtype: of the tensor.
        kept: "codes of 2 bits", "bits", "by reference" or "as it is".
        nbytes: of what is kept; 0 by reference.
        reason: why it is kept as it is; else empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kept: str
    nbytes: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What the pass is told; see CompressionConfig."""

    linear: Codes
    product: Codes
    min_numel: int
    seed: int
    operators: tuple[str, ...]  # linear in their first argument


def rewrite(
    forward: GraphModule,
    backward: GraphModule,
    num_outputs: int,
    recipe: Recipe,
    first_site: int,
) -> list[KeptTensor]:
    """Change both graphs in place; tell what became of each tensor.

    Args:
        forward: gives num_outputs results and then what is kept.
        backward: takes what is kept, in the same order, and then gradients.
        num_outputs: of forward, which nothing is done to.
        recipe: bits and blocks.
        first_site: number of the first place that rounds.
    """
    return _Rewriting(forward, backward, num_outputs, recipe, first_site).run()


class _Rewriting:
    def __init__(
        self,
        forward: GraphModule,
        backward: GraphModule,
        num_outputs: int,
        recipe: Recipe,
        first_site: int,
    ) -> None:
        self.forward, self.backward = forward.graph, backward.graph
        self.modules = forward, backward
        self.num_outputs, self.recipe = num_outputs, recipe
        self.index = first_site
        self.end = next(iter(self.forward.find_nodes(op="output")))
        # Before buffers are written to, such as running means: what is kept is from
        # before as well.
        self.place = next(
            node
            for node in self.forward.nodes
            if node.target is aten.copy_.default or node is self.end
        )
        placeholders = self.backward.find_nodes(op="placeholder")
        given = list(self.end.args[0])[num_outputs:]
        # Placeholder of backward: what forward gives for it.
        self.pairs: dict[Node, Node] = dict(zip(placeholders, given, strict=False))
        self.added: list[tuple[Node, Node]] = []  # placeholder, what forward gives
        self.notes: list[KeptTensor] = []

    def run(self) -> list[KeptTensor]:
        if not all(_is_static(one) for one in self.pairs.values()):
            return [
                KeptTensor(
                    "all", (), torch.float32, "as it is", 0, "shapes are not constant"
                )
            ]
        gradients = behind_gradients(self.backward, lambda one: one not in self.pairs)
        self.hoist_masks(gradients)
        for kept in list(self.pairs):
            if kept.users:
                self.keep(kept, gradients)
            else:
                del self.pairs[kept]
                self.backward.erase_node(kept)
        self.finish()
        return self.notes

    def hoist_masks(self, gradients: Collection[Node]) -> None:
        """Masks that meet gradients, and are known without them, move to forward."""
        before = {*self.pairs}
        copies = _Copies(self.forward, self.place, self.pairs)
        for node in list(self.backward.nodes):
            value = node.meta.get("val")
            if node.op != "call_function" or node in gradients or node in before:
                continue
            if not isinstance(value, Tensor) or value.dtype != torch.bool:
                continue
            if value.numel() < self.recipe.min_numel or not _reads_kept(node, before):
                continue
            if not any(user in gradients for user in node.users):
                continue
            twin = copies.of(node)
            if twin is None:
                continue
            with self.backward.inserting_before(next(iter(self.backward.nodes))):
                place = self.backward.placeholder(f"mask_{node.name}")
            place.meta["val"] = value
            self.pairs[place] = twin
            node.replace_all_uses_with(place)
        self.backward.eliminate_dead_code()

    def keep(self, kept: Node, gradients: Collection[Node]) -> None:
        """Decide for one tensor."""
        given, value, recipe = self.pairs[kept], kept.meta["val"], self.recipe
        if _is_input(given):
            self.note(kept, "by reference", 0)
            return
        if given.target is aten.full.default:
            self.decoded(kept, given.target, given.args, given.kwargs)
            return
        numel = value.numel()
        if value.dtype == torch.bool and numel >= recipe.min_numel:
            packed = self.in_forward(ours.pack_bits.default, (given,))
            inside = self.instead([packed])
            self.decoded(kept, ours.unpack_bits.default, (*inside, [*value.shape]))
            self.note(kept, "bits", packed.meta["val"].nbytes)
            return
        reason = ""
        if value.dtype not in _FLOATS:
            reason = f"{value.dtype} has no codes"
        elif numel < recipe.min_numel:
            reason = f"fewer than {recipe.min_numel} values"
        elif given in self.end.args[0][: self.num_outputs]:
            reason = "it is an output, which is there anyway"
        if not reason:
            verdict = dependence(kept, gradients, recipe.operators)
            reason = verdict.reason
        codes = None
        if not reason:
            codes = recipe.product if verdict.is_product else recipe.linear
            if codes.bits == 32:
                reason = "32 bits were asked for"
        if reason or codes is None:
            self.note(kept, "as it is", value.nbytes, reason)
            return
        levels = [] if codes.boundaries is None else codes.boundaries.tolist()
        site = new_site(recipe.seed, self.index)
        self.index += 1
        arguments = (given, site, codes.bits, codes.block_size, levels)
        encoded = self.in_forward(ours.encode.default, arguments)
        parts = [self.part(encoded, place) for place in range(3)]
        inside = self.instead(parts)
        arguments = (*inside, [*value.shape], codes.bits, levels, value.dtype)
        self.decoded(kept, ours.decode.default, arguments)
        nbytes = sum(part.meta["val"].nbytes for part in parts)
        self.note(kept, f"codes of {codes.bits} bits", nbytes)

    def in_forward(self, target: Any, arguments: tuple[Any, ...]) -> Node:
        with self.forward.inserting_before(self.place):
            node = self.forward.call_function(target, arguments)
        return _with_value(node)

    def part(self, node: Node, place: int) -> Node:
        return self.in_forward(operator.getitem, (node, place))

    def instead(self, parts: list[Node]) -> list[Node]:
        """Placeholders for what forward now gives."""
        found = []
        for part in parts:
            with self.backward.inserting_before(next(iter(self.backward.nodes))):
                place = self.backward.placeholder(f"kept_{part.name}")
            place.meta["val"] = part.meta["val"]
            self.added.append((place, part))
            found.append(place)
        return found

    def decoded(
        self,
        kept: Node,
        target: Any,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any] | None = None,
    ) -> None:
        """Read by all who read the tensor, before the first of them."""
        users = set(kept.users)
        first = next(node for node in self.backward.nodes if node in users)
        with self.backward.inserting_before(first):
            node = self.backward.call_function(target, arguments, keywords)
        node.meta["val"] = kept.meta["val"]
        kept.replace_all_uses_with(node)
        del self.pairs[kept]
        self.backward.erase_node(kept)

    def note(self, kept: Node, how: str, nbytes: int, reason: str = "") -> None:
        value = kept.meta["val"]
        note = KeptTensor(
            kept.name, tuple(value.shape), value.dtype, how, nbytes, reason
        )
        self.notes.append(note)

    def finish(self) -> None:
        """Forward gives what backward takes, in one order: ours before the others.

        Those whose version is not checked stay last, where they are looked for.
        """
        added = dict(self.added)
        hoisted = {p: g for p, g in self.pairs.items() if p.name.startswith("mask_")}
        rest = {p: g for p, g in self.pairs.items() if p not in hoisted}
        given = {**added, **hoisted, **rest}
        for place in reversed(given):
            first = next(iter(self.backward.nodes))
            if place is not first:
                first.prepend(place)
        kept = list(given.values())
        outputs = [*self.end.args[0]][: self.num_outputs]
        descriptions = self.end.meta.get("desc")
        if descriptions is not None:
            from torch._functorch._aot_autograd.descriptors import (
                SavedForBackwardsAOTOutput,
            )

            self.end.meta["desc"] = [
                *list(descriptions)[: self.num_outputs],
                *(SavedForBackwardsAOTOutput(place) for place in range(len(kept))),
            ]
        self.end.args = ((*outputs, *kept),)
        self.forward.eliminate_dead_code()
        for module, graph in zip(
            self.modules, (self.forward, self.backward), strict=True
        ):
            graph.lint()
            module.recompile()


class _Copies:
    """Nodes of backward, computed in forward, where the same is not there already."""

    def __init__(self, forward: Any, place: Node, pairs: dict[Node, Node]) -> None:
        self.forward, self.place = forward, place
        self.twins: dict[Node, Node] = dict(pairs)
        self.known = {
            _key(node, node.args, node.kwargs): node
            for node in forward.nodes
            if node.op == "call_function"
        }

    def of(self, node: Node) -> Node | None:
        """The twin in forward; None where a random number would be drawn anew."""
        if node in self.twins:
            return self.twins[node]
        if node.op != "call_function":
            return None
        twins = [self.of(one) for one in node.all_input_nodes]
        if any(twin is None for twin in twins):
            return None
        arguments = torch.fx.node.map_arg(node.args, lambda one: self.twins[one])
        keywords = torch.fx.node.map_arg(node.kwargs, lambda one: self.twins[one])
        key = _key(node, arguments, keywords)
        if key not in self.known:
            if node.is_impure() or _is_random(node):
                return None
            with self.forward.inserting_before(self.place):
                twin = self.forward.call_function(node.target, arguments, keywords)
            twin.meta["val"] = node.meta["val"]
            self.known[key] = twin
        self.twins[node] = self.known[key]
        return self.twins[node]


def _key(node: Node, arguments: Any, keywords: Any) -> str:
    return f"{node.target} {arguments} {sorted(keywords.items())}"


def _is_random(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _reads_kept(node: Node, kept: Collection[Node]) -> bool:
    return any(
        one in kept or (one.op != "placeholder" and _reads_kept(one, kept))
        for one in node.all_input_nodes
    )


def _is_input(node: Node) -> bool:
    while node.op == "call_function" and node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node.op in ("placeholder", "get_attr")


def _is_static(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape)


def _with_value(node: Node) -> Node:
    """Its shape, as fake tensors give it."""
    arguments = torch.fx.node.map_arg(node.args, lambda one: one.meta["val"])
    tensors: list[Any] = [one for one in arguments if isinstance(one, Tensor)] or [
        one for part in arguments if isinstance(part, tuple) for one in part
    ]
    mode = getattr(tensors[0], "fake_mode", None)
    if mode is None:
        raise RuntimeError("the compiler's graph holds no fake tensors; cannot rewrite")
    with mode:
        node.meta["val"] = node.target(*arguments)  # type: ignore[operator]
    return node
