"""How activations are kept: one recipe for a model, and others for parts of it."""

import builtins
import fnmatch
from dataclasses import dataclass, field

from torch import Tensor, nn

from pipeline_src.compression.uses import Use
from pipeline_src.quant.blockwise import check_blocks, check_boundaries

_BITS = (2, 4, 8, 32)
_ROWS_PER_BYTE = 4  # at 2 bits; a block of rows fills bytes at every width then


@dataclass(frozen=True, eq=False)
class Codes:
    """Randomly rounded codes; the mean of what is read back is what was kept.

    Args:
        bits: of a code, 2, 4 or 8; 32 keeps float32 values under the same rules, which
            shows what the rules alone do to gradients: nothing but another order of
            additions.
        rows_per_block: rows that share two ends, where a code knows on which side of
            ReLU's threshold its value lies (quant/rectified.py).
        block_size: values that share a zero point and a scale, elsewhere
            (quant/blockwise.py).
        boundaries: (2**bits,) float32, edges of the bins there, bin units; None = even.

    Raises:
        ValueError: if bits or blocks cannot be packed, or one bit is asked for.
    """

    bits: int = 2
    rows_per_block: int = 8
    block_size: int = 256
    boundaries: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ValueError(
                f"bits must be one of {_BITS}, got {self.bits}: one bit tells on which "
                "side of ReLU a value lies and nothing else, and its gradients would "
                "be biased; take 2"
            )
        if self.rows_per_block < 1 or self.rows_per_block % _ROWS_PER_BYTE:
            raise ValueError(
                f"rows_per_block must be a multiple of {_ROWS_PER_BYTE}, the rows that "
                f"share a byte at 2 bits; got {self.rows_per_block}"
            )
        if self.bits == 32:
            return
        check_blocks(self.bits, self.block_size)
        if self.boundaries is not None:
            check_boundaries(self.boundaries, 2**self.bits - 1)


@dataclass(frozen=True)
class Keep:
    """As it is: exact, and of full size."""


@dataclass(frozen=True)
class Offload:
    """As it is, in the memory of the host; on a CPU the same as Keep."""


@dataclass(frozen=True)
class Recompute:
    """Not at all: a module keeps its inputs, and its forward runs again in backward.

    For whole modules, the outermost that match: as `torch.utils.checkpoint`, exact, at
    the price of a second forward. Inputs are kept as they are. Pays where the inside is
    larger than the input by far, or reads values that no code can stand for: PNAConv's
    deviations, for one.
    """


Kept = Codes | Keep | Offload
Choice = Kept | Recompute


@dataclass(frozen=True)
class Part:
    """Operations of a model: those that meet all that is given.

    Args:
        name: pattern of the module's name as named_modules gives it, with * and ?.
        type: class of the module.
        operation: name of the torch function, such as "linear" or "batch_norm".
    """

    name: str = "*"
    type: "builtins.type[nn.Module]" = nn.Module
    operation: str = "*"

    def matches(self, name: str, module: nn.Module, operation: str) -> bool:
        """Whether an operation of a module belongs to it."""
        return (
            fnmatch.fnmatchcase(name, self.name)
            and isinstance(module, self.type)
            and fnmatch.fnmatchcase(operation, self.operation)
        )


@dataclass(frozen=True, eq=False)
class CompressionConfig:
    """What `compress` is told.

    Args:
        bits: of a code, where no choice says otherwise.
        nonlinear_bits: the same where a gradient is no linear function of the value.
            Noise then biases it; eight bits keep that below 1e-4 of it. Most functions
            keep their derivative instead (docs/explanation/compress.md). Also for a
            factor far smaller than what it multiplies, such as one number a node: its
            noise goes into all gradients before it, and it costs little.
        product_bits: the same for a product of two activations, as an attention weight
            times a message: the noise of one goes into all gradients before the other.
            Also for derivatives, which gradients are multiplied by.
        min_numel: smaller tensors are kept as they are.
        seed: of rounding; two models that share it share noise.
        choices: (part, choice) for parts of the model; the last match wins.

    Raises:
        ValueError: if bits cannot be, or single operations are to be computed again.
    """

    bits: int = 2
    nonlinear_bits: int = 8
    product_bits: int = 4
    min_numel: int = 1024
    seed: int = 0
    choices: tuple[tuple[Part, Choice], ...] = ()
    _default: Codes = field(init=False, repr=False)
    _nonlinear: Codes = field(init=False, repr=False)
    _product: Codes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_default", Codes(self.bits))
        for name, bits in (
            ("_nonlinear", self.nonlinear_bits),
            ("_product", self.product_bits),
        ):
            object.__setattr__(self, name, Codes(max(self.bits, bits)))
        for part, choice in self.choices:
            if isinstance(choice, Recompute) and part.operation != "*":
                raise ValueError(
                    "Recompute() is for whole modules, by name or type; got a part for "
                    f"the operation {part.operation!r}. Leave operation out, or take "
                    "Keep() or Codes(...)"
                )

    def recomputes(self, name: str, module: nn.Module) -> bool:
        """Whether a module is computed again in backward."""
        for part, choice in reversed(self.choices):
            if part.operation == "*" and part.matches(name, module, "*"):
                return isinstance(choice, Recompute)
        return False

    def choice(self, name: str, module: nn.Module, operation: str, use: Use) -> Kept:
        """How an operation of a module keeps its activations."""
        for part, choice in reversed(self.choices):
            if isinstance(choice, Recompute):
                continue  # of the module, before its operations are asked about
            if part.matches(name, module, operation):
                return choice
        if use is Use.PRODUCT:
            return self._product
        return self._default if use is Use.LINEAR else self._nonlinear
