"""How a network is kept: a coder for each hidden layer, the ideas, the runs of rows."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.rectified import RectifiedCoder

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
