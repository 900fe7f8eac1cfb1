"""What one forward pass keeps, and how: asked by rules, and by autograd's hooks.

A tensor is decided about once: it is there anyway, it can be made of what is kept, or
it becomes codes. What the function that is running does with it in backward tells how
near codes must come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pipeline_src.compression.config import (
    Codes,
    CompressionConfig,
    Keep,
    Kept,
    Offload,
)
from pipeline_src.compression.sources import (
    Bits,
    Coded,
    Offloaded,
    Precision,
    Resident,
    Source,
    precision_of,
    whole,
)
from pipeline_src.compression.uses import Use, use_of
from pipeline_src.compression.values import (
    Ledger,
    Residents,
    Value,
    geometry_of,
    is_plain,
)
from pipeline_src.quant.references import Reference, check_unchanged, watch

Rule = Callable[..., Any]
_NEEDED = {
    Use.LINEAR: Precision.COARSE,
    Use.PRODUCT: Precision.COARSE,
    Use.SIGN: Precision.EXACT,
    Use.SMOOTH: Precision.FINE,
    Use.EXACT: Precision.EXACT,
    Use.UNKNOWN: Precision.EXACT,
}
_CODED = (torch.float32, torch.float16, torch.bfloat16)
_ADDED = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)
_NORMS = "torch_geometric.nn.norm."
_SMALL = 4  # times fewer values than what a factor multiplies


@dataclass(frozen=True)
class Note:
    """What one operation keeps that is no code, and why."""

    module: str  # its name, "" for the root
    operation: str
    nbytes: int
    reason: str


@dataclass(frozen=True, eq=False)
class Saved:
    """What autograd holds in place of a tensor."""

    value: Value
    sign: bool  # nothing but the sign is read


class Keeper:
    """Of one forward pass; forgets all tensors at its end."""

    def __init__(
        self,
        root: nn.Module,
        config: CompressionConfig,
        seed: int,
        arguments: list[Tensor],  # of forward
        rules: dict[Callable[..., Any], Rule],
    ) -> None:
        """Nothing is kept yet."""
        self.config = config
        self.device = next(
            (one.device for one in [*root.parameters(), *arguments]),
            torch.device("cpu"),
        )
        self.ledger = Ledger()
        self.notes: list[Note] = []
        # The function that is running, on what, and the modules it is called in.
        self.function: Any = None
        self.arguments: tuple[Any, ...] = ()
        self.modules: list[nn.Module] = [root]
        self._rules = rules
        self._names = {id(module): name for name, module in root.named_modules()}
        self._seed, self._drawn = seed, 0
        self._waiting: Value | None = None
        self._is_product = False  # of tensors with a past
        self._indices: list[Reference] = []
        named = [*root.named_parameters(), *root.named_buffers()]
        inputs = [("an input of the model", one) for one in arguments]
        self.residents = Residents([*named, *inputs])

    def end(self) -> None:
        """Decide what is undecided, and let all tensors go."""
        self._settle_waiting()
        self.arguments = ()
        self._indices = []
        self.ledger.clear()

    def plain(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of tensors that are there: by its rule, or as it is."""
        rule = self._rules.get(func)
        if rule is not None:
            return rule(self, func, *args, **kwargs)
        return self.as_it_is(func, *args, **kwargs)

    def as_it_is(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of tensors that are there, past its rule."""
        if use_of(func, args) is Use.LINEAR:
            # What a product is added to is no factor.
            factors = args[1:] if func in _ADDED else args
            self._is_product = _count_with_past((factors, kwargs)) > 1
        return func(*args, **kwargs)

    def see(self, result: Any) -> Any:
        """Remember that a result was made here; it is handed on."""
        if is_plain(result) and not result.requires_grad:
            self.ledger.mark_made(result)
        return result

    def seed(self, device: torch.device) -> Tensor:
        """A seed for one source, () int32; no two are alike."""
        self._drawn += 1
        number = (self._seed * 1_000_003 + self._drawn * 0x9E3779B1) % 2**32
        return torch.full((), number - 2**31, dtype=torch.int32, device=device)

    @property
    def is_in_norm(self) -> bool:
        """Whether what runs is a norm over the nodes of a graph.

        Its squares are averaged over all of them, and its index tells graphs of nodes,
        not nodes of edges.
        """
        return type(self.modules[-1]).__module__.startswith(_NORMS)

    def choice(self, use: Use = Use.LINEAR) -> Kept:
        """How the operation that is running keeps its activations."""
        module = self.modules[-1]
        return self.config.choice(
            self._names.get(id(module), ""), module, self._operation(), use
        )

    def source(self, tensor: Tensor) -> Source:
        """What stands for a tensor that a rule's backward reads row by row."""
        return self._decide(tensor).settled()

    def index(self, index: Tensor) -> Tensor:
        """An index of edges, or an equal one that forward made before and holds.

        A layer may make its own from the edges that it is given, with loops, and each
        layer the same. The comparison waits for a GPU, as what makes such indices does
        by itself: how many edges are loops, the device knows.
        """
        if self.residents.name(index) is not None or type(index) is not Tensor:
            return index
        for one in self._indices:
            other = one.tensor
            if (
                one.version == other._version
                and other.shape == index.shape
                and other.dtype == index.dtype
                and other.device == index.device
                and (_is_same(other, index) or torch.equal(other, index))
            ):
                return other
        self._indices += watch([("an index of edges", index)])
        return index

    def source_of_its_own(self, tensor: Tensor, use: Use = Use.PRODUCT) -> Source:
        """As source, with noise that nothing else has.

        For a product of two tensors that both have a past: the gradient of one holds
        the noise of the other, and may come to where that other is read again.
        With the same noise the mean of the product would be off by its variance.
        """
        choice = self.choice(use)
        value = self.ledger.of(tensor)
        if value.source is not None and value.source.precision is Precision.EXACT:
            return value.source
        name = self._resident(tensor)
        if name is not None:
            return Resident.of(tensor, name)
        return self.coded(tensor, choice)

    def wait(self, tensor: Tensor, settle_later: Callable[[], None]) -> Value:
        """A value for the next rule to decide about; by default, settle_later does."""
        self._settle_waiting()
        value = self.ledger.of(tensor)
        if value.is_open:
            value.waiting, value.settle_later = tensor, settle_later
            self._waiting = value
        return value

    def coded(self, tensor: Tensor, choice: Kept) -> Source:
        """A source of its own for a float tensor."""
        if isinstance(choice, Offload):
            return Offloaded.of(tensor)
        if (
            isinstance(choice, Keep)
            or tensor.dtype not in _CODED
            or tensor.numel() < self.config.min_numel
        ):
            return Resident.of(tensor, self._operation(), is_own=True)
        with torch.autocast(tensor.device.type, enabled=False):
            return Coded.of(tensor, choice, self.seed(tensor.device))

    def note(self, nbytes: int, reason: str) -> None:
        """Say what is kept as it is."""
        name = self._names.get(id(self.modules[-1]), "")
        self.notes.append(Note(name, self._operation(), nbytes, reason))

    def exact(self, tensor: Tensor) -> Source:
        """The tensor as it is."""
        value = self.ledger.of(tensor).fit_for(Precision.EXACT)
        if value.is_open:
            name = self.residents.name(tensor)
            own = self._operation()
            value.settle(Resident.of(tensor, name or own, is_own=name is None))
        return value.settled()

    def _operation(self) -> str:
        function = self.function
        return getattr(function, "__name__", str(function)).strip("_")

    def _settle_waiting(self) -> None:
        if self._waiting is not None and self._waiting.source is None:
            self._waiting.settled()
        self._waiting = None

    def _resident(self, tensor: Tensor) -> str | None:
        """What a tensor is called that lives without us, or None.

        Without a gradient, and not made since forward began: data that the model has
        from elsewhere than its arguments, or in an object among them.
        """
        name = self.residents.name(tensor)
        if (
            name is None
            and not tensor.requires_grad
            and not self.ledger.is_made(tensor)
        ):
            return "data of the model"
        return name

    def _decide(self, tensor: Tensor) -> Value:
        choice = self.choice()
        value = self.ledger.of(tensor).fit_for(_precision_of(choice))
        if value.is_open:
            name = self._resident(tensor)
            if name is not None:
                value.settle(Resident.of(tensor, name))
            else:
                value.settle(self.coded(tensor, choice))
        return value

    def pack(self, tensor: Tensor) -> "Saved | Reference":
        """What autograd holds in place of a tensor."""
        if tensor.layout != torch.strided or self.residents.name(tensor) is not None:
            return watch([(self._operation(), tensor)])[0]
        own = tensor.untyped_storage().nbytes()
        if own < tensor.numel() * tensor.element_size():  # expanded
            return watch([(self._operation(), tensor)])[0]
        use = use_of(self.function, self.arguments)
        if use is Use.LINEAR and self._resident(tensor) is not None:
            return watch([(self._operation(), tensor)])[0]  # inputs alone are saved
        if use is Use.LINEAR:
            use = self._use_of_factor(tensor)
        choice = self.choice(use)
        if use is Use.SIGN and isinstance(choice, Codes):
            return Saved(Value(Bits.of(tensor > 0)), sign=True)
        needed = max(_NEEDED[use], _precision_of(choice))
        value = self.ledger.of(tensor).fit_for(needed)
        if use is Use.PRODUCT and not value.is_exact:
            value = Value()  # see source_of_its_own
        if value.is_open:
            self._decide_saved(tensor, value, use, choice)
        return Saved(value, sign=False)

    def _use_of_factor(self, tensor: Tensor) -> Use:
        """Of a tensor that something else is multiplied by."""
        others = (one for one in self.arguments if isinstance(one, Tensor))
        if any(one.numel() >= _SMALL * tensor.numel() for one in others):
            return Use.SMOOTH
        return Use.PRODUCT if self._is_product else Use.LINEAR

    def _decide_saved(
        self, tensor: Tensor, value: Value, use: Use, choice: Kept
    ) -> None:
        if tensor.dtype == torch.bool:
            value.settle(Bits.of(tensor))
            return
        size, name = tensor.nbytes, self._operation()
        if not tensor.is_floating_point() or tensor.numel() < self.config.min_numel:
            value.settle(Resident.of(tensor, name, is_own=True))
            return
        reason = None
        if isinstance(choice, Codes):
            if tensor.dtype not in _CODED:
                reason = f"{tensor.dtype} is not coded"
            elif use is Use.EXACT:
                reason = "its gradient is not bounded in the value"
            elif use is Use.UNKNOWN:
                reason = "nothing is known about its gradient"
        elif isinstance(choice, Keep):
            reason = "asked to be kept"
        if reason is not None:
            self.note(size, reason)
            value.settle(Resident.of(tensor, name, is_own=True))
        else:
            value.settle(self.coded(tensor, choice))


def _is_same(one: Tensor, other: Tensor) -> bool:
    same = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same and geometry_of(one) == geometry_of(other)


def _count_with_past(arguments: Any) -> int:
    """Tensors whose gradient goes on to what they were made of."""
    return sum(
        isinstance(one, Tensor) and one.requires_grad and not one.is_leaf
        for one in tree_flatten(arguments)[0]
    )


def _precision_of(choice: Kept) -> Precision:
    return precision_of(choice.bits if isinstance(choice, Codes) else 32)


def unpack(saved: "Saved | Reference") -> Tensor:
    """What autograd gets for it."""
    if isinstance(saved, Reference):
        check_unchanged([saved])
        return saved.tensor
    source = saved.value.settled()
    if isinstance(source, Resident):
        return source.tensor()
    tensor = whole(source)
    if saved.sign and tensor.dtype == torch.bool:
        return tensor.to(torch.float32).mul_(2).sub_(1)
    return tensor
