"""The operation itself: all layers forward, and back through what they kept.

The recipe tells which of the ideas of gnn/lean are in use; the essay over the package
says what they are.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd import Function

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.batch_norm import Statistics, move_running
from pipeline_src.gnn.lean.layers import (
    Gradients,
    KeptRun,
    LeanLayer,
    scalar,
    through_convolution,
    through_normalization,
)
from pipeline_src.gnn.lean.recipe import LeanRecipe, Runs, Slot
from pipeline_src.quant.bitmask import pack_mask
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.fusion import fusion_pays
from pipeline_src.quant.masked import encode_masked, survives
from pipeline_src.quant.noise import mix
from pipeline_src.quant.rectified import (
    Normalization,
    RectifiedCoder,
    RectifiedSetting,
    encode,
    side_means,
)
from pipeline_src.quant.references import check_unchanged, watch


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
            kept = [KeptRun.of(runs, run, x[runs.nodes(run)]) for run in runs]
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
            gradient = through_convolution(
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
            through_normalization(
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
            probability = scalar(drawn, y.device)
            setting = RectifiedSetting(coder, normalization, probability, means, fused)
            codes = encode(y, seed, setting)
            flag.logical_and_(codes.is_finite)
            kept = [KeptRun.of(runs, run, codes, dropout) for run in runs]
        else:
            kept = []
            for run in runs:
                masked = encode_masked(
                    y[run], seed, run.start, normalization, drawn, coder
                )
                flag.logical_and_(masked.is_finite)
                kept.append(KeptRun.of(runs, run, masked, dropout))
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
