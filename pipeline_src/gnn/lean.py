"""The whole network as one operation that keeps little and holds little.

EXACT compresses what each operation keeps. Looking at all of them at once, most of it
need not be kept at all:

1. Aggregation is linear, so grad W = xᵀ(Aᵀg): no copy of A x, and Aᵀg is needed anyway.
2. The first layer's input is resident data.
3. Dropout's mask is noise of (seed, row, feature), drawn again in backward.
4. The next convolution's input is rebuilt from what BatchNorm and ReLU keep.
5. BatchNorm and ReLU share one code per value that knows its side of ReLU's threshold
   (quant/rectified.py), so the mask costs nothing.
6. Backward reads codes run by run, adds to weight gradients, and overwrites gradients.

So a hidden layer keeps its codes and nothing else. Backward holds two tensors of the
size of an activation at once: the gradient and its transposed aggregation. Each idea
can be switched off by its name in IDEAS; what is then kept is compressed at the same
width, projected if the recipe says so, and the rest stays as it is.

The price is one more aggregation for the first layer, and gradients that carry the
noise of stochastic rounding in all layers but the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.batch_norm import BatchNorm
from pipeline_src.quant.bitmask import mask_gradient, pack_mask
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.fusion import fusion_pays
from pipeline_src.quant.masked import MaskedCodes, encode_masked, survives
from pipeline_src.quant.noise import mix
from pipeline_src.quant.rectified import (
    Normalization,
    RectifiedCoder,
    RectifiedCodes,
    RectifiedSetting,
    active_sums,
    encode,
)
from pipeline_src.quant.references import check_unchanged, watch

IDEAS = (
    "transposed_aggregation",
    "resident_input",
    "regenerated_dropout",
    "rebuilt_input",
    "sided_codes",
    "chunked_backward",
)
RUN_VALUES = 2**21  # that a kernel takes at once on a CPU: 8 MiB, a share of its cache
RUN_VALUES_ON_GPU = 2**23  # 32 MiB: fills a GPU, and little beside the activations
PLAIN_RUN_VALUES = 2**15  # plain kernels hold a dozen temporaries of this size
Slot = int  # of a layer, counted from 0


@dataclass(frozen=True)
class LeanRecipe:
    """How hidden layers are kept.

    Args:
        coders: of each hidden layer; a Compressor where codes do not know their side.
        rows_per_block: node rows that share a minimum and a maximum.
        copies: of each layer's input, for what ideas that are switched off keep.
        without: ideas that are switched off, of IDEAS.
        compile: whether kernels are compiled.

    Raises:
        ValueError: if without names what is no idea.
    """

    coders: tuple[Compressor | RectifiedCoder, ...]
    rows_per_block: int
    copies: tuple[Compressor, ...] = ()
    without: frozenset[str] = frozenset()
    compile: str = "auto"

    def __post_init__(self) -> None:
        if unknown := sorted(self.without - set(IDEAS)):
            raise ValueError(f"without must name ideas of {IDEAS}, got {unknown}")

    def names(self, num_layers: int, has_root: bool) -> list[str]:
        """Names of all that is kept, in the order of seeds and flags."""
        names = []
        for slot in range(num_layers):
            if self.copies_input(slot):
                names.append(f"layer{slot + 1}.input")
            if self.copies_aggregated(has_root):
                names.append(f"layer{slot + 1}.aggregated")
            if slot < num_layers - 1:
                names.append(f"layer{slot + 1}.codes")
        return names

    def copies_input(self, slot: Slot) -> bool:
        """True where a convolution's input is kept for itself."""
        return ("rebuilt_input" if slot else "resident_input") in self.without

    def copies_aggregated(self, has_root: bool) -> bool:
        """True where A x is kept; GCN, without a root weight, never forms it."""
        return has_root and "transposed_aggregation" in self.without

    def runs(self, num_nodes: int, width: int, device: torch.device) -> "Runs":
        """How the rows of an activation are taken."""
        fused = fusion_pays(num_nodes * width, device, self.compile)
        values = RUN_VALUES_ON_GPU if device.type == "cuda" else RUN_VALUES
        if "chunked_backward" in self.without:
            values = num_nodes * width + 1
        elif not fused:
            values = PLAIN_RUN_VALUES
        return Runs(num_nodes, width, self.rows_per_block, values, fused)


@dataclass(frozen=True)
class Runs:
    """Rows of an activation, cut into runs of whole blocks."""

    num_nodes: int
    width: int
    rows_per_block: int
    values: int  # in a run, at most about
    fused: bool

    @property
    def num_rows(self) -> int:
        """Of a buffer that holds whole blocks."""
        return -(-self.num_nodes // self.rows_per_block) * self.rows_per_block

    def __iter__(self) -> Iterator[slice]:
        """Runs of at least two blocks: a kernel for any size is compiled anew for 1."""
        block = self.rows_per_block
        step = max(2, self.values // (block * self.width)) * block
        starts = list(range(0, self.num_rows, step))
        if len(starts) > 1 and self.num_rows - starts[-1] == block:
            starts.pop()
        ends = [*starts[1:], self.num_rows]
        return (slice(*pair) for pair in zip(starts, ends, strict=True))

    def blocks(self, run: slice) -> slice:
        """The blocks of a run."""
        return slice(run.start // self.rows_per_block, run.stop // self.rows_per_block)

    def nodes(self, run: slice) -> slice:
        """The rows of a run that are no padding."""
        return slice(run.start, min(run.stop, self.num_nodes))


@dataclass(frozen=True, eq=False)
class LeanLayer:
    """Parameters of one layer; those that a layer lacks are None."""

    weight: Tensor  # (num_outputs, num_inputs), of the aggregated neighbours
    bias: Tensor  # (num_outputs,)
    root_weight: Tensor | None = None  # (num_outputs, num_inputs), of the node itself
    norm: BatchNorm | None = None

    def parameters(self) -> list[Tensor]:
        """Those that are there, in the order of `Gradients.in_order`."""
        root = [] if self.root_weight is None else [self.root_weight]
        norm = [] if self.norm is None else self.norm.parameters()
        return [self.weight, self.bias, *root, *norm]

    def read_in_backward(self) -> Iterator[tuple[str, Tensor | None]]:
        """Parameters by name that backward reads again."""
        yield "weight", self.weight
        yield "root weight", self.root_weight
        if self.norm is not None:
            yield "BatchNorm weight", self.norm.weight
            yield "BatchNorm bias", self.norm.bias

    def convolve(
        self,
        x: Tensor,  # (num_nodes, num_inputs)
        aggregation: Aggregation,
        output: Tensor,  # (num_nodes, num_outputs), overwritten
        aggregated: Tensor | None = None,  # A x, if it is known
    ) -> None:
        """Write A x Wᵀ + b (+ x Wᵣᵀ) into output, aggregating the narrower side."""
        if aggregated is None and output.shape[1] < x.shape[1]:
            aggregation.into(x @ self.weight.T, output)
        else:
            if aggregated is None:
                aggregated = aggregation(x)
            torch.mm(aggregated, self.weight.T, out=output)
        if self.root_weight is not None:
            output.addmm_(x, self.root_weight.T)
        output += self.bias

    def input_gradient(self, transposed: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of some rows of the input from those rows of Aᵀ g and g."""
        product = transposed @ self.weight
        if self.root_weight is not None:
            product.addmm_(gradient, self.root_weight)
        return product


class Gradients:
    """Gradients of one layer's parameters, added up run by run."""

    def __init__(self, layer: LeanLayer) -> None:
        """Start from zero."""
        self.weight = torch.zeros_like(layer.weight)
        self.bias = torch.zeros_like(layer.bias)
        self.root_weight = (
            None if layer.root_weight is None else torch.zeros_like(layer.root_weight)
        )
        self.norm: tuple[Tensor, ...] = ()

    def in_order(self) -> list[Tensor]:
        """As LeanLayer.parameters."""
        root = [] if self.root_weight is None else [self.root_weight]
        return [self.weight, self.bias, *root, *self.norm]


@dataclass(eq=False)
class KeptRun:
    """What is kept of some rows of a convolution's input."""

    rows: slice  # of nodes
    source: Tensor | MaskedCodes | RectifiedCodes  # resident rows, or codes of them
    dropout: float  # that the source does not draw itself, for which there is a mask
    mask: Tensor | None = None  # packed bits of Dropout
    input: CompressedActivation | None = None
    aggregated: CompressedActivation | None = None

    def x(self) -> Tensor:
        """Estimate of the rows."""
        if isinstance(self.source, Tensor):
            return self.source
        x = self.source.output()
        if self.mask is not None:
            x = self.drop(x)
        return x[: self.rows.stop - self.rows.start]

    def drop(self, values: Tensor) -> Tensor:
        """Through a mask that was kept."""
        assert self.mask is not None, "asked only where Dropout is not drawn again"
        return mask_gradient(values, self.mask, 1 / (1 - self.dropout), "false")

    def add_gradients(
        self, found: Gradients, transposed: Tensor, gradient: Tensor
    ) -> None:
        """Add what these rows contribute, from their rows of Aᵀ g and g."""
        if self.aggregated is not None:
            found.weight += self.aggregated.weight_gradient(gradient)
        if self.input is not None:
            if self.aggregated is None:
                found.weight += self.input.weight_gradient(transposed)
            if found.root_weight is not None:
                found.root_weight += self.input.weight_gradient(gradient)
            return
        if self.aggregated is not None and found.root_weight is None:
            return
        x = self.x()
        if self.aggregated is None:
            found.weight.addmm_(transposed.T, x)
        if found.root_weight is not None:
            found.root_weight.addmm_(gradient.T, x)


class LeanNetwork(Function):
    """Logits of a whole network, (num_nodes, num_classes)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_nodes, num_features): resident data, kept by reference
        aggregation: Aggregation,
        layers: list[LeanLayer],
        recipe: LeanRecipe,
        dropout: float,
        seeds: Tensor,  # (number of recipe.names,) int32
        finite: Tensor,  # the same, bool: cleared where values are not finite
        *parameters: Tensor,  # of all layers in order: for autograd, not used here
    ) -> Tensor:
        num_nodes, device = x.shape[0], x.device
        keeping = _Keeping(recipe, layers, seeds, finite)
        ctx.setting = (aggregation, layers, recipe)
        kept_by_reference = _read_in_backward(x, layers, recipe, seeds)
        ctx.references = watch(kept_by_reference) + aggregation.watched()
        hidden = x
        resident = recipe.copies_input(0) or recipe.copies_aggregated(keeping.has_root)
        kept = [KeptRun(slice(0, num_nodes), x, 0.0)]
        if resident:
            runs = recipe.runs(num_nodes, x.shape[1], device)
            kept = [KeptRun(runs.nodes(run), x[runs.nodes(run)], 0.0) for run in runs]
        ctx.kept = [kept]
        for slot, layer in enumerate(layers):
            aggregated = keeping.copy(slot, hidden, aggregation, ctx.kept[-1])
            width = layer.bias.numel()
            if slot == len(layers) - 1:
                logits = x.new_empty((num_nodes, width))
                layer.convolve(hidden, aggregation, logits, aggregated)
                return logits
            runs = recipe.runs(num_nodes, width, device)
            y = x.new_empty((runs.num_rows, width))
            layer.convolve(hidden, aggregation, y[:num_nodes], aggregated)
            del aggregated
            y[num_nodes:] = y[num_nodes - 1]  # padding changes no block's ends
            normalization = _normalization(layer, y[:num_nodes])
            ctx.kept.append(keeping.encode(slot, y, runs, normalization, dropout))
            hidden = y[:num_nodes]
            del y
        raise AssertionError("the last layer returns")

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError(
                "backward can run only once: it gives back what was kept as it goes; "
                "run forward again"
            )
        check_unchanged(ctx.references)
        aggregation, layers, recipe = ctx.setting
        kept, ctx.kept, ctx.references = ctx.kept, None, None
        num_nodes = grad_logits.shape[0]
        found = [Gradients(layer) for layer in layers]
        gradient = grad_logits
        for slot in range(len(layers) - 1, 0, -1):
            runs_kept = kept.pop()
            rows = gradient[:num_nodes]
            found[slot].bias += rows.sum(dim=0)
            transposed = aggregation.transpose(rows)
            width = layers[slot].weight.shape[1]
            runs = recipe.runs(num_nodes, width, gradient.device)
            gradient = _through_convolution(
                layers[slot],
                found[slot],
                runs_kept,
                runs,
                transposed,
                gradient,
                gradient is not grad_logits,
            )
            del transposed, rows
            below = slot - 1
            _through_normalization(
                layers[below], found[below], runs_kept, runs, gradient
            )
        rows = gradient[:num_nodes]
        found[0].bias += rows.sum(dim=0)
        transposed = aggregation.transpose(rows)
        for run in kept.pop():
            run.add_gradients(found[0], transposed[run.rows], rows[run.rows])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = layers[0].input_gradient(transposed, rows)
        return (of_x, *(None,) * 6, *(g for one in found for g in one.in_order()))


def _read_in_backward(
    x: Tensor, layers: list[LeanLayer], recipe: LeanRecipe, seeds: Tensor
) -> Iterator[tuple[str, Tensor | None]]:
    """What is kept by reference beside the aggregation, by name."""
    yield "x", x
    yield "seeds", seeds
    for slot, layer in enumerate(layers):
        for name, parameter in layer.read_in_backward():
            yield f"layer{slot + 1} {name}", parameter
    for coder in (*recipe.coders, *recipe.copies):
        yield "boundaries", coder.boundaries


class _Keeping:
    """Makes the codes and copies of one forward pass, with their seeds and flags."""

    def __init__(
        self,
        recipe: LeanRecipe,
        layers: list[LeanLayer],
        seeds: Tensor,
        finite: Tensor,
    ) -> None:
        self.recipe = recipe
        self.has_root = layers[0].root_weight is not None
        names = recipe.names(len(layers), self.has_root)
        self.seeds = dict(zip(names, seeds, strict=True))
        self.finite = dict(zip(names, finite, strict=True))

    def copy(
        self, slot: Slot, x: Tensor, aggregation: Aggregation, kept: list[KeptRun]
    ) -> Tensor | None:
        """Keep copies of a convolution's input; return A x where that was formed."""
        aggregated = None
        if self.recipe.copies_aggregated(self.has_root):
            aggregated = aggregation(x)
        for run in kept:
            if aggregated is not None:
                name = f"layer{slot + 1}.aggregated"
                run.aggregated = self._compress(slot, name, aggregated, run.rows)
            if self.recipe.copies_input(slot):
                run.input = self._compress(slot, f"layer{slot + 1}.input", x, run.rows)
        return aggregated

    def encode(
        self,
        slot: Slot,
        y: Tensor,  # (padded rows, width), overwritten with h
        runs: Runs,
        normalization: Normalization,
        dropout: float,
    ) -> list[KeptRun]:
        """Codes of a hidden layer's output, which is the next layer's input."""
        name, recipe = f"layer{slot + 1}.codes", self.recipe
        seed, flag, coder = self.seeds[name], self.finite[name], recipe.coders[slot]
        drawn_again = "regenerated_dropout" not in recipe.without
        drawn = dropout if drawn_again else 0.0
        means = None
        if isinstance(coder, RectifiedCoder):
            # One tensor for all runs, so that their number changes no byte.
            blocks, per_block = (
                runs.num_rows // runs.rows_per_block,
                coder.rows_per_block,
            )
            shape = (blocks, per_block * coder.bits // 8, runs.width)
            packed = y.new_empty(shape, dtype=torch.uint8)
            ends = y.new_empty((blocks, coder.num_ends), dtype=torch.bfloat16)
            if coder.needs_means:
                means = _side_means(y, runs, normalization)
        kept = []
        for run in runs:
            part = y[run]
            codes: MaskedCodes | RectifiedCodes
            if isinstance(coder, RectifiedCoder):
                setting = RectifiedSetting(
                    coder, normalization, drawn, means, runs.fused
                )
                of = runs.blocks(run)
                codes = encode(part, packed[of], ends[of], seed, run.start, setting)
            else:
                codes = encode_masked(
                    part, seed, run.start, normalization, drawn, coder
                )
            flag.logical_and_(codes.is_finite)
            one = KeptRun(runs.nodes(run), codes, dropout)
            if dropout and not drawn_again:
                mask = survives(seed, run.start, part.shape, dropout)
                one.mask = pack_mask(mask, "false")
                part.copy_(one.drop(part))
            kept.append(one)
        return kept

    def _compress(
        self, slot: Slot, name: str, x: Tensor, rows: slice
    ) -> CompressedActivation:
        seed = mix(self.seeds[name] + rows.start)
        copy = self.recipe.copies[slot].compress(x[rows], seed)
        self.finite[name].logical_and_(copy.is_finite)
        return copy


def _through_convolution(
    layer: LeanLayer,
    found: Gradients,
    kept: list[KeptRun],  # of the layer's input
    runs: Runs,
    transposed: Tensor,  # (num_nodes, num_outputs), Aᵀ times the gradient
    gradient: Tensor,  # (num_nodes or more, num_outputs)
    overwrite: bool,  # whether the gradient is ours
) -> Tensor:
    """Gradient of the layer's input, (padded rows, num_inputs), padding 0."""
    # Rows of the gradient are done with once their own input gradient is known, so it
    # can take their place where it has their size.
    shape = (runs.num_rows, runs.width)
    fits = overwrite and gradient.shape == shape
    result = gradient if fits else gradient.new_empty(shape)
    for run in kept:
        rows = transposed[run.rows], gradient[run.rows]
        run.add_gradients(found, *rows)
        result[run.rows] = layer.input_gradient(*rows)
    result[runs.num_nodes :] = 0.0
    return result


def _through_normalization(
    layer: LeanLayer,
    found: Gradients,
    kept: list[KeptRun],
    runs: Runs,
    gradient: Tensor,  # (padded rows, width): of h; overwritten with that of y
) -> None:
    """Through Dropout, ReLU and BatchNorm, in place."""
    sums = torch.zeros(2, runs.width, device=gradient.device)
    parts = [(run, gradient[rows]) for run, rows in zip(kept, runs, strict=True)]
    for run, part in parts:
        if run.mask is not None:
            part.copy_(run.drop(part))
        if layer.norm is not None:
            sums += _codes(run).gradient_sums(part)
    if layer.norm is not None:
        of_weight, of_bias = sums[1].clone(), sums[0].clone()
        found.norm = (
            *(() if layer.norm.weight is None else (of_weight,)),
            *(() if layer.norm.bias is None else (of_bias,)),
        )
        if not layer.norm.by_batch:
            sums.zero_()  # running statistics do not depend on y
    mean_gradient, mean_product = sums / runs.num_nodes
    for run, part in parts:
        _codes(run).backpropagate(part, mean_gradient, mean_product)


def _codes(run: KeptRun) -> MaskedCodes | RectifiedCodes:
    assert not isinstance(run.source, Tensor), "hidden layers are kept as codes"
    return run.source


def _side_means(y: Tensor, runs: Runs, normalization: Normalization) -> Tensor:
    """Means of n over nodes on either side of ReLU, (2, width); 0 if it is empty."""
    sums = torch.zeros(3, runs.width, device=y.device)
    for run in runs:
        sums += active_sums(y[run], normalization, runs.rows_per_block, runs.fused)
    if padding := runs.num_rows - runs.num_nodes:
        sums -= active_sums(y[runs.num_nodes :], normalization, padding, False)
    count, active, total = sums
    counts = torch.stack([runs.num_nodes - count, count])
    return torch.stack([total - active, active]) / counts.clamp(min=1)


def _normalization(layer: LeanLayer, y: Tensor) -> Normalization:
    """Statistics of this batch, also taken into the running ones."""
    zero = torch.zeros(y.shape[1], device=y.device)
    norm = layer.norm
    if norm is None:
        return Normalization(zero, zero + 1, zero + 1, zero)
    mean, inverse_std = norm.statistics(y)
    weight = zero + 1 if norm.weight is None else norm.weight
    return Normalization(
        mean, inverse_std, weight, zero if norm.bias is None else norm.bias
    )
