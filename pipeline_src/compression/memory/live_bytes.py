"""Which bytes are alive after every operation, and which operation made them.

PyTorch hands every operation, forward and backward, to a dispatch mode below autograd.
A storage that an operation shows for the first time was made by it; a weak reference
tells when it goes. The sums are therefore those of the allocator, for tensors of any
kind: fake ones, which have a size and no memory, as well.

The module is the innermost that is running, and the operation the outermost function of
torch that is: `batch_norm`, whatever it is made of. Autograd numbers its nodes as
forward makes them, so that an operation in backward knows whose gradient it computes.

What an operation allocates and releases inside its kernel is not dispatched; where that
is known to be large, kernel_scratch.py counts it.
"""

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline_src.compression.memory.kernel_scratch import scratch_bytes
from pipeline_src.compression.memory.kernel_shapes import KernelShapes
from pipeline_src.compression.memory.sparse_parts import storages
from pipeline_src.quant.fusion import instead_of_compiled

ALLOCATION_UNIT = 512  # bytes; as training/meters.py counts, which lies further down


class Place(NamedTuple):
    """Where in a model something happens."""

    module: str  # its name; "" for the root; LOSS or UPDATE
    operation: str


LOSS = "(loss)"
UPDATE = "(optimiser)"
# Autograd's own code changes in place what nobody else holds, but not where a mode
# watches: then it makes a new tensor, and lets the old one go right after.
_IN_PLACE_OTHERWISE = {
    torch.ops.aten.add.Tensor,
    torch.ops.aten.index_add.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten.scatter_add.default,
}


@dataclass(frozen=True)
class Moment:
    """One operation, and what was alive when it was done.

    Args:
        place: whose value or gradient it computes.
        phase: "forward", "backward" or "update".
        kernel: name of the ATen operation.
        nbytes: allocated and alive after it, above what was alive at the start.
        peak: the most that was alive during it, likewise.
    """

    place: Place
    phase: str
    kernel: str
    nbytes: int
    peak: int


@dataclass(frozen=True)
class Block:
    """One storage that an operation made.

    Args:
        place: of the operation.
        phase: when it ran.
        allocated: bytes that the allocator spends on it.
        numel: values of the tensor that showed it first.
        dtype: theirs.
    """

    place: Place
    phase: str
    allocated: int
    numel: int
    dtype: torch.dtype


class Change(NamedTuple):
    """A storage came or went.

    Args:
        moment: index of the operation that it happens in; its end sees it done.
        block: the storage.
        nbytes: more, or fewer if negative, than before.
    """

    moment: int
    block: Block
    nbytes: int


def rounded(nbytes: int) -> int:
    """What the allocator spends on a storage.

    >>> rounded(1), rounded(512), rounded(0)
    (512, 512, 0)
    """
    return -(-nbytes // ALLOCATION_UNIT) * ALLOCATION_UNIT


class LiveBytes(TorchDispatchMode):
    """Follows the memory that operations make while it is open.

    Args:
        model: gives modules their names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self.changes: list[Change] = []
        self.phase = "forward"
        self.now = 0  # bytes
        self._blocks: dict[int, tuple[weakref.ref[Any], Block]] = {}
        self._older: dict[int, weakref.ref[Any]] = {}
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._modules: list[str] = []
        self._functions = _Outermost(lambda name: self._numbered(self._here(name)))
        self._numbers = torch._C._autograd._get_sequence_nr()
        self._made_at: dict[int, Place] = {}  # by autograd's number
        self._handles: list[Any] = []
        self._is_in_kernel = False
        self._shapes = KernelShapes()
        self._kernels = instead_of_compiled(self._kernel)

    # ---- what is asked of it -------------------------------------------------------

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before; their storages are nobody's."""
        for tensor in tensors:
            for storage in storages(tensor):
                self._older[storage._cdata] = weakref.ref(storage)

    def blocks(self, besides: Iterable[Tensor] = ()) -> tuple[Block, ...]:
        """What operations made and is alive, but for some tensors."""
        left = {one._cdata for tensor in besides for one in storages(tensor)}
        return tuple(
            block for key, (_, block) in self._blocks.items() if key not in left
        )

    def settle(self) -> int:
        """Take what is alive as given, for a step that comes; its bytes."""
        settled = self.now
        for key, (reference, _) in self._blocks.items():
            self._older[key] = reference
        self._blocks.clear()
        self.moments.clear()
        self.changes.clear()
        self._made_at.clear()
        self.now = 0
        return settled

    def belongs_to_loss(self, tensors: Iterable[Tensor]) -> None:
        """Say so of what a model returned."""
        for tensor in tensors:
            for storage in storages(tensor):
                if (known := self._blocks.get(storage._cdata)) is not None:
                    reference, block = known
                    self._change(block, -block.allocated)
                    block = replace(block, place=Place(LOSS, "output"))
                    self._blocks[storage._cdata] = (reference, block)
                    self._change(block, block.allocated)

    def in_loss(self) -> "_Outermost":
        """A context in which functions are those of the loss."""
        self._modules = [LOSS]
        return self._functions

    # ---- opening and closing -------------------------------------------------------

    def __enter__(self) -> "LiveBytes":
        every = nn.modules.module
        self._handles = [
            every.register_module_forward_pre_hook(self._enter_module),
            every.register_module_forward_hook(self._leave_module, always_call=True),
            # Inside of whatever other hooks of the model open.
            self._model.register_forward_pre_hook(self._enter_model),
            self._model.register_forward_hook(
                self._leave_model, always_call=True, prepend=True
            ),
        ]
        self._kernels.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._kernels.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, arguments: Any) -> None:
        outer = self._modules[-1] if self._modules else ""
        self._modules.append(self._names.get(id(module), outer))

    def _leave_module(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._modules:
            self._modules.pop()

    def _enter_model(self, module: nn.Module, arguments: Any) -> None:
        self._functions.__enter__()

    def _leave_model(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._functions.__exit__(None, None, None)

    # ---- operations ----------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # Asked for at every turn, and nothing that any mode needs to see.
            fake = isinstance(args[0], FakeTensor)
            return args[0].fake_device if fake else func(*args, **kwargs)
        if self._is_in_kernel:
            return func(*args, **kwargs)
        before = self.now
        place = self._place(_name(func))
        output = func(*args, **kwargs)
        self._see_all(output, place)
        peak = self.now + scratch_bytes(func, args, output)
        if func in _IN_PLACE_OTHERWISE and _is_called_by_autograd():
            peak = before
        self.moments.append(Moment(place, self.phase, _name(func), self.now, peak))
        return output

    def _kernel(self, plain: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """A compiled kernel: what it returns is all that it allocates."""
        name = plain.__name__.strip("_")
        place = self._place(name)
        self._is_in_kernel = True
        try:
            output = self._shapes.results(plain, arguments)
        finally:
            self._is_in_kernel = False
        self._see_all(output, place)
        self.moments.append(Moment(place, self.phase, name, self.now, self.now))
        return output

    def _see_all(self, output: Any, place: Place) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor, place)

    def _see(self, tensor: Tensor, place: Place) -> None:
        for storage in storages(tensor):
            key = storage._cdata
            older = self._older.get(key)
            if older is not None and older() is storage:
                continue
            known = self._blocks.get(key)
            size = rounded(storage.nbytes())
            if known is not None:
                block = known[1]
                if size == block.allocated:
                    continue
                place = block.place
                self._change(block, -block.allocated)
            reference = weakref.ref(storage, self._forget(key))
            block = Block(place, self.phase, size, tensor.numel(), tensor.dtype)
            self._blocks[key] = (reference, block)
            self._change(block, size)

    def _forget(self, key: int) -> Callable[[Any], None]:
        follower = weakref.ref(self)

        def forget(reference: Any) -> None:
            self = follower()
            if self is None:
                return
            known = self._blocks.get(key)
            if known is not None and known[0] is reference:
                del self._blocks[key]
                self._change(known[1], -known[1].allocated)
            elif self._older.get(key) is reference:
                del self._older[key]

        return forget

    def _change(self, block: Block, nbytes: int) -> None:
        self.now += nbytes
        self.changes.append(Change(len(self.moments), block, nbytes))

    def _place(self, kernel: str) -> Place:
        if self.phase != "forward":
            node = torch._C._current_autograd_node()
            if node is None:
                return Place(UPDATE if self.phase == "update" else "", kernel)
            known = self._made_at.get(node._sequence_nr())
            return known or Place("", node.name())
        place = self._here(self._functions.name or kernel)
        # A node is numbered before the operation that it belongs to is run.
        self._numbered(place)
        return place

    def _here(self, operation: str) -> Place:
        return Place(self._modules[-1] if self._modules else "", operation)

    def _numbered(self, place: Place) -> None:
        """Nodes that were made since this was asked last belong to a place."""
        end = torch._C._autograd._get_sequence_nr()
        for number in range(self._numbers, end):
            self._made_at[number] = place
        self._numbers = end


class _Outermost(TorchFunctionMode):
    """Knows which function of torch the model has called."""

    def __init__(self, leave: Callable[[str], None]) -> None:
        super().__init__()
        self.name: str | None = None
        self._leave = leave

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outer = self.name
        self.name = getattr(func, "__name__", str(func)).strip("_")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if outer is None:
                self._leave(self.name)
            self.name = outer


def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.partition("::")[2]


def _is_called_by_autograd() -> bool:
    """Whether no function written in Python asked for the operation."""
    frame = sys._getframe(2)
    while frame.f_code.co_name in ("_fn", "inner") and frame.f_back is not None:
        frame = frame.f_back  # PyTorch's own, around a mode
    return frame.f_code.co_name == "_engine_run_backward"
