"""What stands for an activation until backward asks for it.

A source knows how to give some rows of the activation again, or an unbiased estimate of
them. Most hold codes; some hold nothing and make the rows of those of another source:
Dropout's output is its input's rows and one bit per value. Rows are asked for run by
run, so that nothing of the activation's size exists beside the gradient.
"""

import abc
import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.compression.config import Codes
from pipeline_src.quant.bitmask import mask_gradient, pack_mask, unpack_mask
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.fusion import fusion_pays
from pipeline_src.quant.noise import mix
from pipeline_src.quant.rectified import RectifiedCodes
from pipeline_src.quant.references import Reference, check_unchanged, watch

# Values of a run: as many as fit a share of a CPU's cache, or fill a GPU.
RUN_VALUES = 2**20
RUN_VALUES_ON_GPU = 2**25
_ROWS = 64  # runs are whole multiples, so that blocks of rows lie within one


class Precision(enum.IntEnum):
    """How near a source comes to its activation."""

    COARSE = 0  # right in the mean
    FINE = 1  # and within 2**-8 of a block's range
    EXACT = 2


@dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """An activation of a shape and a type; dimension 0 counts rows."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def precision(self) -> Precision:
        """How near rows come to those of the activation."""
        return Precision.EXACT

    @abc.abstractmethod
    def rows(self, run: slice) -> Tensor:
        """Estimate of a run's rows; run is one of `runs_of(shape, device)`."""

    def parts(self) -> Iterator[Tensor]:
        """Tensors that it holds for itself."""
        return iter(())


def runs_of(shape: torch.Size, device: torch.device) -> list[slice]:
    """Rows of an activation, cut into runs; the same for one shape everywhere."""
    values = RUN_VALUES_ON_GPU if device.type == "cuda" else RUN_VALUES
    if len(shape) == 0:
        return [slice(0, 1)]
    width = max(1, shape[1:].numel())
    step = max(1, values // (width * _ROWS)) * _ROWS
    return [
        slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)
    ]


def _wish(shape: torch.Size, device: torch.device) -> str:
    """Whether kernels for runs are compiled: all of an activation's, or none."""
    return "true" if fusion_pays(shape.numel(), device, "auto") else "false"


def whole(source: Source) -> Tensor:
    """The activation at full size."""
    runs = runs_of(source.shape, source.device)
    if len(runs) == 1:
        return source.rows(runs[0]).view(source.shape)
    tensor = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    for run in runs:
        tensor[run] = source.rows(run)
    return tensor


def precision_of(bits: int) -> Precision:
    """Of codes; 32 bits are floats as they are."""
    if bits == 32:
        return Precision.EXACT
    return Precision.FINE if bits >= 8 else Precision.COARSE


@dataclass(frozen=True, eq=False)
class Resident(Source):
    """A tensor that is there anyway, or is kept as it is; watched for changes."""

    reference: Reference
    is_own: bool  # kept for this alone

    @classmethod
    def of(cls, tensor: Tensor, name: str, is_own: bool = False) -> "Resident":
        """Detached, so that no graph is kept alive."""
        (reference,) = watch([(name, tensor.detach())])
        return cls(tensor.shape, tensor.dtype, tensor.device, reference, is_own)

    def tensor(self) -> Tensor:
        """It; refused if it was changed since."""
        check_unchanged([self.reference])
        return self.reference.tensor

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        tensor = self.tensor()
        return tensor[run] if tensor.ndim else tensor

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        if self.is_own:
            yield self.reference.tensor


@dataclass(frozen=True, eq=False)
class Offloaded(Source):
    """A copy in the host's memory."""

    copy: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> "Offloaded":
        """Copied at once."""
        copy = tensor.detach().to("cpu", copy=True)
        return cls(tensor.shape, tensor.dtype, tensor.device, copy)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        return self.copy[run].to(self.device)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        yield self.copy


@dataclass(frozen=True, eq=False)
class Coded(Source):
    """Block-wise codes, run by run."""

    runs: tuple[CompressedActivation, ...]
    bits: int

    @property
    def precision(self) -> Precision:
        """See Source."""
        return precision_of(self.bits)

    @classmethod
    def of(cls, tensor: Tensor, codes: Codes, seed: Tensor) -> "Coded":
        """Round and pack; float32 or half."""
        compile = _wish(tensor.shape, tensor.device)
        compressor = Compressor(
            codes.bits, codes.block_size, 1, codes.boundaries, compile
        ).to(tensor.device)
        rows = tensor.detach()
        kept = []
        for run in runs_of(tensor.shape, tensor.device):
            part = rows[run].reshape(run.stop - run.start, -1)
            if codes.bits == 32:
                part = part.clone()  # rows may be a view of what is overwritten
            kept.append(compressor.compress(part, mix(seed + run.start)))
        return cls(tensor.shape, tensor.dtype, tensor.device, tuple(kept), codes.bits)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        index = runs_of(self.shape, self.device).index(run)
        values = self.runs[index].decompress()
        return values.view(-1, *self.shape[1:]).to(self.dtype)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        for kept in self.runs:
            yield from kept.tensors


@dataclass(frozen=True, eq=False)
class Rectified(Source):
    """The output of a ReLU, from codes that know their side."""

    codes: RectifiedCodes  # of (rows, features)

    @property
    def precision(self) -> Precision:
        """See Source."""
        return precision_of(self.codes.setting.coder.bits)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        block = self.codes.setting.coder.rows_per_block
        stop = -(-run.stop // block) * block
        values = self.codes.output(slice(run.start, stop))[: run.stop - run.start]
        return values.view(-1, *self.shape[1:]).to(self.dtype)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        yield self.codes.packed
        if self.codes.ends is not None:
            yield self.codes.ends


@dataclass(frozen=True, eq=False)
class Normalized(Source):
    """The input of a BatchNorm, from the codes of the ReLU behind it."""

    codes: RectifiedCodes  # of (rows, features)

    @property
    def precision(self) -> Precision:
        """See Source."""
        return precision_of(self.codes.setting.coder.bits)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        block = self.codes.setting.coder.rows_per_block
        stop = -(-run.stop // block) * block
        values = self.codes.normalized(slice(run.start, stop))
        norm = self.codes.setting.normalization
        values = values[: run.stop - run.start] / norm.inverse_std + norm.mean
        return values.to(self.dtype)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        yield self.codes.packed
        if self.codes.ends is not None:
            yield self.codes.ends


@dataclass(frozen=True, eq=False)
class Bits(Source):
    """A boolean for each value, as one bit, run by run."""

    packed: tuple[Tensor, ...]

    @classmethod
    def of(cls, mask: Tensor) -> "Bits":
        """Pack a bool tensor."""
        runs = runs_of(mask.shape, mask.device)
        compile = _wish(mask.shape, mask.device)
        packed = tuple(
            pack_mask(mask[run] if mask.ndim else mask, compile) for run in runs
        )
        return cls(mask.shape, torch.bool, mask.device, packed)

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        index = runs_of(self.shape, self.device).index(run)
        shape = (run.stop - run.start, *self.shape[1:])
        return unpack_mask(self.packed[index], torch.Size(shape))

    def masked(self, values: Tensor, run: slice, factor: float) -> Tensor:
        """Values of a run where the bit is set, times a factor; else 0."""
        index = runs_of(self.shape, self.device).index(run)
        compile = _wish(self.shape, self.device)
        return mask_gradient(values, self.packed[index], factor, compile)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        yield from self.packed


@dataclass(frozen=True, eq=False)
class Dropped(Source):
    """The output of Dropout: its input where a bit is set, scaled."""

    of: Source
    bits: Bits
    factor: float

    @property
    def precision(self) -> Precision:
        """See Source."""
        return self.of.precision

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        return self.bits.masked(self.of.rows(run), run, self.factor)

    def parts(self) -> Iterator[Tensor]:
        """See Source; the rest belongs to others."""
        yield from self.bits.parts()


@dataclass(frozen=True, eq=False)
class Cast(Source):
    """Another type of float."""

    of: Source

    @property
    def precision(self) -> Precision:
        """See Source."""
        return self.of.precision

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        return self.of.rows(run).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Strided(Source):
    """A view of another activation, of any strides."""

    of: Source
    stride: tuple[int, ...]
    offset: int

    @property
    def precision(self) -> Precision:
        """See Source."""
        return self.of.precision

    def rows(self, run: slice) -> Tensor:
        """See Source; makes the whole, if the view does not keep rows."""
        if self._keeps_rows:
            runs = runs_of(self.of.shape, self.device)
            if run in runs:
                return self.of.rows(run).reshape(-1, *self.shape[1:])
        return whole(self.of).as_strided(self.shape, self.stride, self.offset)[run]

    @property
    def _keeps_rows(self) -> bool:
        contiguous = torch.empty(self.shape, device="meta").stride()
        return (
            self.offset == 0
            and self.stride == contiguous
            and self.shape.numel() == self.of.shape.numel()
            and self.shape[:1] == self.of.shape[:1]
        )
