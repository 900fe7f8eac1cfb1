"""How each point of a network is stored, and how gradients pass it.

Inference packs a point and its consumers gather packed rows. Fine-tuning packs it and
decodes it at once: the same numbers bit for bit, and gradients pass as if it were the
identity, also where a value was clipped, as in SGQuant's released code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.gnn.feature_bits import FeatureBits
from pipeline_src.gnn.message_plan import Run
from pipeline_src.quant.feature_store import FeatureStore, RowGroups, RowPacking
from pipeline_src.quant.segment_store import pack_segments

ATTENTION_RANGES = ("receiver", "tensor")

# (name of the point, bytes of one packed tensor of it)
Record = Callable[[str, int], None]


class StraightThrough(Function):
    """Any rounding in forward, the identity in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """What rounding makes of x."""
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient, unchanged."""
        return gradients[0], None


@dataclass(frozen=True)
class QuantizedPoints:
    """How each point of a network is stored.

    Raises:
        ValueError: if attention_range is not one of ATTENTION_RANGES.
    """

    bits: FeatureBits
    packing: RowPacking = field(default_factory=RowPacking)
    input_range: str | None = None  # of the input features; None: as everywhere
    attention_range: str = "receiver"  # shared by the edges of a receiver, or by all
    straight_through: bool = False
    record: Record | None = None  # told the bytes of all that is packed

    def __post_init__(self) -> None:
        if self.attention_range not in ATTENTION_RANGES:
            raise ValueError(
                f"attention_range must be one of {ATTENTION_RANGES}, "
                f"got {self.attention_range!r}"
            )

    def store(
        self, x: Tensor, layer: int, component: str, groups: RowGroups | None
    ) -> FeatureStore:
        """Features of nodes, (num_nodes, width), as their consumer will read them."""
        bits = self.bits.bits(layer, component)
        packing = self.packing
        if self.input_range and (layer, component) == (0, "combination"):
            packing = replace(packing, range=self.input_range)

        def pack(x: Tensor) -> FeatureStore:
            packed = FeatureStore.pack(x, bits, packing, groups)
            self._report(layer, component, packed.nbytes)
            return packed

        self._check_gradient(x)
        if self.straight_through:
            decoded = StraightThrough.apply(x, lambda x: pack(x).decode())
            return FeatureStore.full(decoded)
        return pack(x)

    def attention(
        self,
        values: Tensor,  # (num_edges, heads) float32
        run: Run,
        layer: int,
        shared_range: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Attention values of a run as the sum over messages will read them."""
        bits = self.bits.bits(layer, "attention")[run.bucket]
        if bits == 32:
            self._report(layer, "attention values", values.nbytes)
            return values

        self._check_gradient(values)

        def round_trip(values: Tensor) -> Tensor:
            packed = pack_segments(
                values,
                run.pointer,
                run.owner,
                bits,
                shared_range,
                self.packing.metadata,
                self.packing.compile,
            )
            self._report(layer, "attention values", packed.nbytes)
            return packed.decode(run.owner)

        if self.straight_through:
            return StraightThrough.apply(values, round_trip)
        return round_trip(values)

    def _check_gradient(self, x: Tensor) -> None:
        if x.requires_grad and torch.is_grad_enabled() and not self.straight_through:
            raise RuntimeError(
                "packed points pass no gradient, and something before this one needs "
                "it; infer under torch.no_grad(), or tune with straight_through=True"
            )

    def _report(self, layer: int, point: str, nbytes: int) -> None:
        if self.record is not None:
            self.record(f"layer{layer + 1}.{point}", nbytes)
