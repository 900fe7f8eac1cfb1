"""One layer: its product, what is kept of its input, and the way back through it.

Going back takes rows run by run: each adds to the gradients of the parameters, and its
gradient of the input takes the place of that of the output.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.batch_norm import BatchNorm
from pipeline_src.gnn.lean.recipe import Runs
from pipeline_src.quant.bitmask import mask_gradient
from pipeline_src.quant.compressor import CompressedActivation
from pipeline_src.quant.masked import MaskedCodes
from pipeline_src.quant.rectified import RectifiedCodes


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

    @classmethod
    def of(
        cls,
        runs: Runs,
        rows: slice,  # one of them
        source: "Tensor | MaskedCodes | RectifiedCodes",
        dropout: float = 0.0,
    ) -> "KeptRun":
        """What a run keeps, to begin with."""
        nodes = runs.nodes(rows)
        return cls(rows, nodes.stop - nodes.start, source, dropout)

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


def through_convolution(
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


def through_normalization(
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
        codes.backpropagate(part, sums, scalar(share, part.device))


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


@functools.lru_cache(maxsize=64)
def scalar(value: float, device: torch.device) -> Tensor:
    """A () tensor that nothing writes to, made once: each time costs a GPU a launch."""
    return torch.full((), value, dtype=torch.float32, device=device)
