"""Which source stands for which tensor, while a forward pass runs.

Autograd and our rules name activations by tensors; two tensors that show the same
memory in the same way, unchanged between, are the same activation and are kept once. A
ledger knows memory by its storage, which it refers to weakly: when a tensor dies its
storage may serve another one, and the entry is gone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline_src.compression.sources import Precision, Source, Strided


@dataclass(frozen=True, eq=False)
class Known:
    """An output that was computed already, on its way through an autograd function.

    Handed over like this it is neither an input nor a view of one, so that it may be
    changed in place afterwards as any other output.
    """

    tensor: Tensor


Geometry = tuple[torch.Size, tuple[int, ...], int, torch.dtype]


@dataclass(eq=False)
class Value:
    """An activation: its source, once that is decided; until then the tensor itself.

    Whoever needs the activation in backward holds the value, and the value its source.
    """

    source: Source | None = None
    waiting: Tensor | None = None  # until a source takes its place
    settle_later: Callable[[], None] | None = None
    made_by: object | None = None  # how it was made, for rules that come after
    finer: "Value | None" = None  # the same activation, kept again with more bits

    @property
    def is_open(self) -> bool:
        """True where nobody has decided, or put off deciding."""
        return self.source is None and self.waiting is None

    @property
    def is_exact(self) -> bool:
        """True where noise is no question."""
        return not self.is_open and self.precision is Precision.EXACT

    def settled(self) -> Source:
        """Its source; decides by default if nobody did."""
        if self.source is None:
            assert self.settle_later is not None, "a value without source waits for one"
            self.settle_later()
        assert self.source is not None, "settled"
        return self.source

    def settle(self, source: Source) -> None:
        """Give it a source; the tensor is let go."""
        self.source, self.waiting, self.settle_later = source, None, None

    def fit_for(self, needed: Precision) -> "Value":
        """This one, or another of the same activation where codes are too coarse."""
        if self.is_open or self.precision >= needed:
            return self
        if self.finer is None:
            self.finer = Value()
        return self.finer.fit_for(needed)

    @property
    def precision(self) -> Precision:
        """Of what is or will be kept."""
        return Precision.COARSE if self.source is None else self.source.precision


@dataclass(eq=False)
class _Entry:
    storage: StorageWeakRef
    version: int
    values: dict[Geometry, Value]


def is_plain(one: object) -> bool:
    """Whether it is a tensor and no subclass but the fake ones, which stand for it."""
    return type(one) is Tensor or type(one) is FakeTensor


def geometry_of(tensor: Tensor) -> Geometry:
    """How a tensor shows its storage."""
    offset = int(tensor.storage_offset())
    return tensor.shape, tensor.stride(), offset, tensor.dtype


class Ledger:
    """Values of the tensors of one forward pass."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._entries: dict[int, _Entry] = {}
        self._made: dict[int, StorageWeakRef] = {}

    def of(self, tensor: Tensor) -> Value:
        """The value that a strided tensor shows; a new one if it is not known."""
        entry = self._entry(tensor)
        geometry = geometry_of(tensor)
        if geometry in entry.values:
            return entry.values[geometry]
        value = self._view(tensor, entry) or Value()
        entry.values[geometry] = value
        return value

    def known(self, tensor: Tensor) -> Value | None:
        """The value that a tensor shows, if it was asked for or set before."""
        entry = self._entries.get(tensor.untyped_storage()._cdata)
        if entry is None or not _is_of(entry, tensor):
            return None
        return entry.values.get(geometry_of(tensor))

    def set(self, tensor: Tensor, value: Value) -> None:
        """Say what a tensor shows."""
        self._entry(tensor).values[geometry_of(tensor)] = value

    def mark_made(self, tensor: Tensor) -> None:
        """A tensor without gradient that forward has made."""
        if tensor.layout == torch.strided:
            self._made.setdefault(
                tensor.untyped_storage()._cdata,
                StorageWeakRef(tensor.untyped_storage()),
            )

    def is_made(self, tensor: Tensor) -> bool:
        """Whether forward has made what a tensor shows."""
        made = self._made.get(tensor.untyped_storage()._cdata)
        return made is not None and not made.expired()

    def clear(self) -> None:
        """Forget all; values live on with those who need them."""
        self._entries.clear()
        self._made.clear()

    def _entry(self, tensor: Tensor) -> _Entry:
        storage = tensor.untyped_storage()
        entry = self._entries.get(storage._cdata)
        if entry is None or not _is_of(entry, tensor):
            # The weak reference keeps the address from being given to another one.
            entry = _Entry(StorageWeakRef(storage), tensor._version, {})
            self._entries[storage._cdata] = entry
        return entry

    @staticmethod
    def _view(tensor: Tensor, entry: _Entry) -> Value | None:
        """A view of what is known whole, else None."""
        for (shape, stride, offset, dtype), value in entry.values.items():
            if dtype != tensor.dtype or offset != 0:
                continue
            nbytes = shape.numel() * tensor.element_size()
            is_dense = stride == torch.empty(shape, device="meta").stride()
            if not is_dense or nbytes != tensor.untyped_storage().nbytes():
                continue
            return _ViewValue(value, tensor)
        return None


class _ViewValue(Value):
    """A view; its source is made when the other's is there."""

    def __init__(self, of: Value, tensor: Tensor) -> None:
        super().__init__()
        self.of = of
        self._what = (tensor.shape, tensor.dtype, tensor.device)
        self._how = (tensor.stride(), int(tensor.storage_offset()))

    @property
    def is_open(self) -> bool:
        """See Value."""
        return self.source is None and self.of.is_open

    @property
    def precision(self) -> Precision:
        """See Value."""
        return self.of.precision if self.source is None else self.source.precision

    def settled(self) -> Source:
        """See Value."""
        if self.source is None:
            stride, offset = self._how
            self.source = Strided(*self._what, self.of.settled(), stride, offset)
        return self.source


def _is_of(entry: _Entry, tensor: Tensor) -> bool:
    return entry.version == tensor._version and not entry.storage.expired()


class Residents:
    """Storages that live without us: parameters, buffers, what forward was given."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Names for the storages of tensors."""
        self._names = {
            tensor.untyped_storage()._cdata: name
            for name, tensor in tensors
            if tensor.layout == torch.strided
        }

    def name(self, tensor: Tensor) -> str | None:
        """Its name, or None."""
        return self._names.get(tensor.untyped_storage()._cdata)
