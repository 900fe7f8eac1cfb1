"""GraphSAGE and GCN that train compressed or not.

Blocks are convolution, BatchNorm, ReLU, Dropout; the last layer is a convolution alone
and gives logits (the configuration of EXACT and of its block-wise successor). One class
serves all ways of training: without a keeper every operation is PyTorch's own and
keeps what PyTorch keeps; a Keep names the Compressor of each activation; a LeanRecipe
stands for the layout of gnn/lean.
Forward gives the same numbers either way, and evaluation never compresses.
"""

import itertools
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_src.gnn.aggregation import (
    Aggregation,
    gcn_aggregation,
    mean_aggregation,
)
from pipeline_src.gnn.batch_norm import BatchNorm, check_batch
from pipeline_src.gnn.lean.layers import LeanLayer
from pipeline_src.gnn.lean.network import LeanNetwork
from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.saved import (
    Aggregate,
    BatchNormalization,
    DropoutWithBitMask,
    GcnConvolution,
    ReluWithBitMask,
    SageConvolution,
)
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.dtypes import as_float32, check_dtype, check_seed

# (name of the activation, its width, may it be projected) -> how it is kept
Keep = Callable[[str, int, bool], Compressor]


class SageLayer(nn.Module):
    """Parameters of one GraphSAGE convolution; lin_l has a bias, lin_r none, as PyG."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.neighbor = nn.Linear(num_inputs, num_outputs)
        self.root = nn.Linear(num_inputs, num_outputs, bias=False)

    def kept_activations(self) -> tuple[str, ...]:
        """Names of what the published layout keeps, in the order of the seeds."""
        return ("input", "aggregated")

    def plain(self, x: Tensor, aggregation: Aggregation) -> Tensor:
        """Output under PyTorch's own autograd."""
        if not self.training and self.neighbor.out_features < x.shape[1]:
            # The same sum in another order: aggregating costs by the width. Training
            # aggregates first, as PyG does, because it is the reference.
            transformed = functional.linear(x, self.neighbor.weight)
            aggregated = Aggregate.apply(transformed, aggregation)
            return aggregated + self.neighbor.bias + self.root(x)
        return self.neighbor(Aggregate.apply(x, aggregation)) + self.root(x)

    def compressed(
        self,
        x: Tensor,
        aggregation: Aggregation,
        compressors: tuple[Compressor, ...],  # of the activations it keeps
        seeds: Tensor,
        finite: Tensor,
    ) -> Tensor:
        """The same output, with compressed activations kept."""
        return SageConvolution.apply(
            x,
            self.neighbor.weight,
            self.neighbor.bias,
            self.root.weight,
            aggregation,
            compressors,
            seeds,
            finite,
        )

    def lean(self, norm: BatchNorm | None) -> LeanLayer:
        """The parameters as the lean network takes them."""
        neighbor, root = self.neighbor, self.root
        return LeanLayer(neighbor.weight, neighbor.bias, root.weight, norm)


class GcnLayer(nn.Module):
    """Parameters of one GCN convolution, initialised as PyG does."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        bound = math.sqrt(6.0 / (num_inputs + num_outputs))
        weight = torch.empty(num_outputs, num_inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def kept_activations(self) -> tuple[str, ...]:
        """Names of what the published layout keeps, in the order of the seeds."""
        return ("input",)

    def plain(self, x: Tensor, aggregation: Aggregation) -> Tensor:
        """Output under PyTorch's own autograd."""
        transformed = functional.linear(x, self.weight)
        return Aggregate.apply(transformed, aggregation) + self.bias

    def compressed(
        self,
        x: Tensor,
        aggregation: Aggregation,
        compressors: tuple[Compressor, ...],  # of the activations it keeps
        seeds: Tensor,
        finite: Tensor,
    ) -> Tensor:
        """The same output, with compressed activations kept."""
        return GcnConvolution.apply(
            x, self.weight, self.bias, aggregation, compressors[0], seeds, finite
        )

    def lean(self, norm: BatchNorm | None) -> LeanLayer:
        """The parameters as the lean network takes them."""
        return LeanLayer(self.weight, self.bias, None, norm)


class GraphNetwork(nn.Module):
    """Convolutions with BatchNorm, ReLU and Dropout between them."""

    finite: Tensor  # (num_seeds,) bool: False once an activation was not finite

    def __init__(
        self,
        shape: NetworkShape,
        keeper: Keep | LeanRecipe | None = None,  # None: PyTorch's own operations
        compile: str = "auto",  # of the kernels that pack masks
    ) -> None:
        """Build with parameters drawn from torch's global generator."""
        super().__init__()
        kind = SageLayer if shape.layer == "sage" else GcnLayer
        self.layer = shape.layer
        self.num_features = shape.num_features
        self.convolutions = nn.ModuleList(
            kind(num_inputs, num_outputs)
            for num_inputs, num_outputs in itertools.pairwise(shape.widths)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(shape.hidden)
            for _ in range(shape.num_hidden)
            if shape.batch_norm
        )
        self.dropout = shape.dropout
        self.compile_choice = compile
        self.lean: LeanRecipe | None = None
        self.activation_names: list[str] = []
        self.compressors: dict[str, Compressor] = {}
        if isinstance(keeper, LeanRecipe):
            self.lean = keeper
            self.activation_names = keeper.names(shape.num_layers, kind is SageLayer)
        elif keeper is not None:
            self._plan(keeper, shape.widths)
        flags = torch.ones(len(self.activation_names), dtype=torch.bool)
        self.register_buffer("finite", flags, persistent=False)

    def aggregation(self, adjacency: Adjacency) -> Aggregation:
        """The aggregation that this kind of layer uses on a graph."""
        make = mean_aggregation if self.layer == "sage" else gcn_aggregation
        return make(adjacency)

    def forward(
        self,
        x: Tensor,  # (num_nodes, num_features) float32 or half
        aggregation: Aggregation,
        seeds: Tensor | None = None,  # (num_seeds,) int32, fresh for each step
    ) -> Tensor:
        """Logits, (num_nodes, num_classes) float32, whatever autocast says.

        Raises:
            ValueError: if activations are to be compressed and seeds are missing, x is
                not of that shape, or BatchNorm is to normalise by a single node.
            TypeError: if x, seeds or parameters are of another type.
        """
        self._check_features(x)
        x = as_float32(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x, aggregation, seeds)

    def _forward(
        self, x: Tensor, aggregation: Aggregation, seeds: Tensor | None
    ) -> Tensor:
        if not self.training or not (self.compressors or self.lean):
            return self._forward_full(x, aggregation)
        if seeds is None or seeds.shape != (self.num_seeds,):
            shape = None if seeds is None else tuple(seeds.shape)
            raise ValueError(
                f"training with compressed activations needs {self.num_seeds} seeds "
                f"per step (int32, see num_seeds), got {shape}"
            )
        check_seed(seeds)
        if self.lean is not None:
            return self._forward_lean(x, aggregation, seeds, self.lean)
        return self._forward_compressed(x, aggregation, seeds)

    @property
    def num_seeds(self) -> int:
        """Seeds that one training step needs: one per compressed activation."""
        return len(self.activation_names)

    def check_finite(self) -> None:
        """Raise if an activation of any step so far cannot be read as finite numbers.

        Waits for the device, so call it between epochs, not within one.

        Raises:
            FloatingPointError: naming the activations.
        """
        flags = self.finite.tolist()
        names = zip(self.activation_names, flags, strict=True)
        if bad := [name for name, is_finite in names if not is_finite]:
            raise FloatingPointError(
                f"NaN or infinity in the activations {', '.join(bad)}, or a range that "
                "float32 cannot hold: they cannot be quantised. Lower learning_rate or "
                "set gradient_clip."
            )

    def _check_features(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] != self.num_features:
            raise ValueError(
                f"x must be (num_nodes, {self.num_features}) with at least one node, "
                f"got {tuple(x.shape)}"
            )
        for name, parameter in self.named_parameters():
            check_dtype(parameter, f"parameter {name}", (torch.float32,))
        self._check_norms(x.shape[0])

    def _check_norms(self, num_nodes: int) -> None:
        for norm in self._norms():
            check_batch(norm, num_nodes)

    def _layers(self) -> list[SageLayer | GcnLayer]:
        return cast(list[SageLayer | GcnLayer], list(self.convolutions))

    def _norms(self) -> list[nn.BatchNorm1d]:
        return cast(list[nn.BatchNorm1d], list(self.norms))

    def _plan(self, keep: Keep, widths: tuple[int, ...]) -> None:
        for i, convolution in enumerate(self._layers()):
            for part in convolution.kept_activations():
                name = f"layer{i + 1}.{part}"
                self.compressors[name] = keep(name, widths[i], True)
                self.activation_names.append(name)
            if i < len(self.norms):
                name = f"layer{i + 1}.batch_norm"
                self.compressors[name] = keep(name, widths[i + 1], False)
                self.activation_names.append(name)

    def _forward_full(self, x: Tensor, aggregation: Aggregation) -> Tensor:
        last = len(self.convolutions) - 1
        for i, convolution in enumerate(self._layers()):
            x = convolution.plain(x, aggregation)
            if i == last:
                return x
            if len(self.norms):
                x = self.norms[i](x)
            x = torch.relu(x)
            if self.training and self.dropout > 0:
                # Not functional.dropout: on a CPU that keeps its mask in float32.
                x = torch.native_dropout(x, self.dropout, True)[0]
        raise AssertionError("the last layer returns")

    def _forward_compressed(
        self, x: Tensor, aggregation: Aggregation, seeds: Tensor
    ) -> Tensor:
        last = len(self.convolutions) - 1
        at = 0
        for i, convolution in enumerate(self._layers()):
            kept = convolution.kept_activations()
            compressors = tuple(self.compressors[f"layer{i + 1}.{k}"] for k in kept)
            count = len(kept)
            part = slice(at, at + count)
            x = convolution.compressed(
                x, aggregation, compressors, seeds[part], self.finite[part]
            )
            at += count
            if i == last:
                return x
            if len(self.norms):
                part = slice(at, at + 1)
                x = self._normalize(i, x, seeds[part], self.finite[part])
                at += 1
            x = ReluWithBitMask.apply(x, self.compile_choice)
            if self.dropout > 0:
                x = DropoutWithBitMask.apply(x, self.dropout, self.compile_choice)
        raise AssertionError("the last layer returns")

    def _forward_lean(
        self, x: Tensor, aggregation: Aggregation, seeds: Tensor, recipe: LeanRecipe
    ) -> Tensor:
        norms = [BatchNorm.of(norm) for norm in self._norms()]
        layers = [
            convolution.lean(norms[i] if i < len(norms) else None)
            for i, convolution in enumerate(self._layers())
        ]
        parameters = [p for layer in layers for p in layer.parameters()]
        return LeanNetwork.apply(
            x,
            aggregation,
            layers,
            recipe,
            self.dropout,
            seeds,
            self.finite,
            *parameters,
        )

    def _normalize(self, i: int, x: Tensor, seed: Tensor, finite: Tensor) -> Tensor:
        norm = BatchNorm.of(self._norms()[i])
        return BatchNormalization.apply(
            x,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.by_batch,
            norm.momentum,
            norm.eps,
            self.compressors[f"layer{i + 1}.batch_norm"],
            seed,
            finite,
        )
