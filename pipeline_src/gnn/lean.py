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

So a hidden layer keeps its codes, the two ends of each block, and two statistics of
each feature. Backward holds two tensors of the size of an activation at once: the
gradient and its transposed aggregation. Each idea can be switched off by its name in
IDEAS; what is then kept is compressed at the same width, projected if the recipe says
so, and the rest stays as it is.

The price is one more aggregation for the first layer, and gradients that carry the
noise of rounding: those of the last layer's weights through its input, those of the
first through BatchNorm and all layers behind it. From two bits on they are unbiased.

The same runs, and the same order of additions, whether kernels are compiled or not:
the choice changes no bit on a CPU. The number of threads may: matrix products add in an
order of their own for each.
"""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.batch_norm import BatchNorm, Statistics, move_running
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
    encode,
    side_means,
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
# Values of a run, and so of the temporaries that a layer's gradients need.
RUN_VALUES = 2**21  # on a CPU: 8 MiB, a share of its cache
RUN_VALUES_ON_GPU = 2**24  # 64 MiB: fills a GPU, and little beside the activations
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

    Warns:
        UserWarning: once in a process, if a layer is kept in codes of one bit.

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
        if any(_is_biased(coder) for coder in self.coders):
            _warn_of_bias()

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
        values = RUN_VALUES_ON_GPU if device.type == "cuda" else RUN_VALUES
        if "chunked_backward" in self.without:
            values = num_nodes * width + 1
        return Runs(num_nodes, width, self.rows_per_block, values)


def _is_biased(coder: Compressor | RectifiedCoder) -> bool:
    return isinstance(coder, RectifiedCoder) and coder.needs_means


@functools.cache
def _warn_of_bias() -> None:
    warnings.warn(
        "lean with 1 bit has biased gradients: a code says on which side of ReLU a "
        "value lies and stands for the mean of that side. Take 2 bits or more, in "
        "bits or layer_bits, for gradients that are right in the mean",
        UserWarning,
        stacklevel=4,
    )


@dataclass(frozen=True)
class Runs:
    """Rows of an activation, cut into runs of whole blocks."""

    num_nodes: int
    width: int
    rows_per_block: int
    values: int  # in a run, at most about

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

    def nodes(self, run: slice) -> slice:
        """The rows of a run that are no padding."""
        return slice(run.start, min(run.stop, self.num_nodes))

    def keep(
        self,
        run: slice,
        source: "Tensor | MaskedCodes | RectifiedCodes",
        dropout: float = 0.0,
    ) -> "KeptRun":
        """What a run keeps, to begin with."""
        nodes = self.nodes(run)
        return KeptRun(run, nodes.stop - nodes.start, source, dropout)


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

    def input_gradient(
        self, transposed: Tensor, gradient: Tensor, output: Tensor | None = None
    ) -> Tensor:
        """Gradient of some rows of the input from those rows of Aᵀ g and g."""
        product = torch.mm(transposed, self.weight, out=output)
        if self.root_weight is not None:
            product.addmm_(gradient, self.root_weight)
        return product


class Gradients:
    """Gradients of one layer's parameters, added up run by run."""

    def __init__(self) -> None:
        """Nothing is found yet."""
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.root_weight: Tensor | None = None
        self.norm: tuple[Tensor, ...] = ()

    def in_order(self) -> list[Tensor]:
        """As LeanLayer.parameters."""
        found = [self.weight, self.bias, self.root_weight, *self.norm]
        return [one for one in found if one is not None]


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if total is None else total.addmm_(left, right)


@dataclass(eq=False)
class KeptRun:
    """What is kept of some rows of a convolution's input."""

    rows: slice  # whole blocks; the last may be padding
    num_nodes: int  # of them that are no padding
    # Resident rows, codes of them, or codes of the whole layer.
    source: Tensor | MaskedCodes | RectifiedCodes
    dropout: float  # that the source does not draw itself, for which there is a mask
    mask: Tensor | None = None  # packed bits of Dropout
    input: CompressedActivation | None = None
    aggregated: CompressedActivation | None = None

    def x(self) -> Tensor:
        """Estimate of the rows."""
        if isinstance(self.source, Tensor):
            return self.source
        if isinstance(self.source, RectifiedCodes):
            x = self.source.output(self.rows)
        else:
            x = self.source.output()
        if self.mask is not None:
            x = self.drop(x)
        return x[: self.num_nodes]

    @property
    def nodes(self) -> slice:
        """The rows that are no padding."""
        return slice(self.rows.start, self.rows.start + self.num_nodes)

    def drop(self, values: Tensor) -> Tensor:
        """Through a mask that was kept."""
        assert self.mask is not None, "asked only where Dropout is not drawn again"
        return mask_gradient(values, self.mask, 1 / (1 - self.dropout), "false")

    def add_gradients(
        self, found: Gradients, transposed: Tensor, gradient: Tensor, has_root: bool
    ) -> None:
        """Add what these rows contribute, from their rows of Aᵀ g and g."""
        if self.aggregated is not None:
            product = self.aggregated.weight_gradient(gradient)
            found.weight = _add(found.weight, product)
        if self.input is not None:
            if self.aggregated is None:
                product = self.input.weight_gradient(transposed)
                found.weight = _add(found.weight, product)
            if has_root:
                product = self.input.weight_gradient(gradient)
                found.root_weight = _add(found.root_weight, product)
            return
        if self.aggregated is not None and not has_root:
            return
        x = self.x()
        if self.aggregated is None:
            found.weight = _add_product(found.weight, transposed.T, x)
        if has_root:
            found.root_weight = _add_product(found.root_weight, gradient.T, x)


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
        statistics: list[Statistics] = []
        resident = recipe.copies_input(0) or recipe.copies_aggregated(keeping.has_root)
        kept = [KeptRun(slice(0, num_nodes), num_nodes, x, 0.0)]
        if resident:
            runs = recipe.runs(num_nodes, x.shape[1], device)
            kept = [runs.keep(run, x[runs.nodes(run)]) for run in runs]
        ctx.kept = [kept]
        for slot, layer in enumerate(layers):
            aggregated = keeping.copy(slot, hidden, aggregation, ctx.kept[-1])
            width = layer.bias.numel()
            if slot == len(layers) - 1:
                logits = x.new_empty((num_nodes, width))
                layer.convolve(hidden, aggregation, logits, aggregated)
                move_running(statistics, num_nodes)
                return logits
            runs = recipe.runs(num_nodes, width, device)
            y = x.new_empty((runs.num_rows, width))
            layer.convolve(hidden, aggregation, y[:num_nodes], aggregated)
            del aggregated
            y[num_nodes:] = y[num_nodes - 1]  # padding changes no block's ends
            normalization = _normalization(layer, y[:num_nodes], statistics)
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
        found = [Gradients() for _ in layers]
        gradient = grad_logits
        for slot in range(len(layers) - 1, 0, -1):
            runs_kept = kept.pop()
            rows = gradient[:num_nodes]
            found[slot].bias = rows.sum(dim=0)
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
        found[0].bias = rows.sum(dim=0)
        transposed = aggregation.transpose(rows)
        has_root = layers[0].root_weight is not None
        for run in kept.pop():
            of = run.nodes
            run.add_gradients(found[0], transposed[of], rows[of], has_root)
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
        if isinstance(coder, Compressor):
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
                run.aggregated = self._compress(slot, name, aggregated, run.nodes)
            if self.recipe.copies_input(slot):
                name = f"layer{slot + 1}.input"
                run.input = self._compress(slot, name, x, run.nodes)
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
        if isinstance(coder, RectifiedCoder):
            fused = fusion_pays(y.numel(), y.device, recipe.compile)
            means = None
            if coder.needs_means:
                means = side_means(y, runs.num_nodes, normalization, fused)
            probability = _scalar(drawn, y.device)
            setting = RectifiedSetting(coder, normalization, probability, means, fused)
            codes = encode(y, seed, setting)
            flag.logical_and_(codes.is_finite)
            kept = [runs.keep(run, codes, dropout) for run in runs]
        else:
            kept = []
            for run in runs:
                masked = encode_masked(
                    y[run], seed, run.start, normalization, drawn, coder
                )
                flag.logical_and_(masked.is_finite)
                kept.append(runs.keep(run, masked, dropout))
        if dropout and not drawn_again:
            for one in kept:
                part = y[one.rows]
                mask = survives(seed, one.rows.start, part.shape, dropout)
                one.mask = pack_mask(mask, "false")
                part.copy_(one.drop(part))
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
    has_root = layer.root_weight is not None
    for run in kept:
        rows = transposed[run.nodes], gradient[run.nodes]
        run.add_gradients(found, *rows, has_root)
        place = result[run.nodes]
        if fits and has_root:  # which reads the gradient after a product is written
            place.copy_(layer.input_gradient(*rows))
        else:
            layer.input_gradient(*rows, place)
    result[runs.num_nodes :].zero_()
    return result


def _through_normalization(
    layer: LeanLayer,
    found: Gradients,
    kept: list[KeptRun],
    runs: Runs,
    gradient: Tensor,  # (padded rows, width): of h; overwritten with that of y
) -> None:
    """Through Dropout, ReLU and BatchNorm, in place."""
    for run in kept:
        if run.mask is not None:
            part = gradient[run.rows]
            part.copy_(run.drop(part))
    parts = _codes_of_rows(kept, gradient)
    share = 0.0  # of a node in the statistics; running ones do not depend on y
    if layer.norm is None:
        sums = gradient.new_zeros((2, runs.width))
    else:
        sums = functools.reduce(
            torch.add, [codes.gradient_sums(part) for codes, part in parts]
        )
        found.norm = (
            *(() if layer.norm.weight is None else (sums[1],)),
            *(() if layer.norm.bias is None else (sums[0],)),
        )
        if layer.norm.by_batch:
            share = 1.0 / runs.num_nodes
    for codes, part in parts:
        codes.backpropagate(part, sums, _scalar(share, part.device))


@functools.lru_cache(maxsize=64)
def _scalar(value: float, device: torch.device) -> Tensor:
    """A () tensor that nothing writes to, made once: each time costs a GPU a launch."""
    return torch.full((), value, dtype=torch.float32, device=device)


def _codes_of_rows(
    kept: list[KeptRun], gradient: Tensor
) -> list[tuple[MaskedCodes | RectifiedCodes, Tensor]]:
    """Codes and the rows of the gradient they stand for: a layer's, or of each run."""
    parts: list[tuple[MaskedCodes | RectifiedCodes, Tensor]] = []
    for run in kept:
        if isinstance(run.source, RectifiedCodes):
            return [(run.source, gradient)]
        assert not isinstance(run.source, Tensor), "hidden layers are kept as codes"
        parts.append((run.source, gradient[run.rows]))
    return parts


def _normalization(
    layer: LeanLayer,
    y: Tensor,  # (num_nodes, width)
    statistics: list[Statistics],  # those of the layer's norm are added
) -> Normalization:
    """What maps y to what ReLU sees: the norm, or nothing."""
    norm, width = layer.norm, y.shape[1]
    weight = bias = None
    if norm is not None:
        statistics.append(norm.statistics(y))
        weight, bias = norm.weight, norm.bias
    weight = y.new_ones(width) if weight is None else weight
    bias = y.new_zeros(width) if bias is None else bias
    if norm is None:
        return Normalization(bias, y.new_ones(width), weight, bias)
    return Normalization(statistics[-1].mean, statistics[-1].inverse_std, weight, bias)
