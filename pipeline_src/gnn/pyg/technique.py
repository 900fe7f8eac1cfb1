"""Which of PyTorch's ways to save memory a network of PyTorch Geometric takes.

    eager            nothing is done: float32, SAGEConv and GCNConv on an `adj_t`
    compiled         torch.compile of the whole network as one graph
    autocast         bfloat16 wherever autocast takes it
    checkpointing    each hidden block is computed again in backward
    budget           compiled, and what is kept is cut to a share of it: an
                     activation memory budget of the partitioner
    offload          saved tensors go to the CPU's memory; on a CPU they are there
                     already, and nothing changes
    quantized_hooks  each saved float32 tensor is kept as 4- or 8-bit codes, whatever
                     operation saved it, and each mask at one bit per value

The choice is made here, apart from the networks, because importing PyTorch Geometric
takes seconds and no other method needs it.
"""

from dataclasses import dataclass

TECHNIQUES = (
    "eager",
    "compiled",
    "autocast",
    "checkpointing",
    "budget",
    "offload",
    "quantized_hooks",
)
COMPILED = ("compiled", "budget")
HOOK_BITS = (4, 8)


@dataclass(frozen=True)
class Technique:
    """One of TECHNIQUES and its settings.

    Raises:
        ValueError: if the name is unknown or bits do not fit it.
    """

    name: str = "eager"
    bits: int = 32  # of codes; quantized_hooks only
    memory_budget: float = 1.0  # of what is kept at most; budget only

    def __post_init__(self) -> None:
        """Refuse what no network can be trained with."""
        if self.name not in TECHNIQUES:
            raise ValueError(
                f"technique must be one of {TECHNIQUES}, got {self.name!r}"
            )
        if self.name == "quantized_hooks" and self.bits not in HOOK_BITS:
            raise ValueError(
                f"quantized_hooks needs bits in {HOOK_BITS}, got {self.bits}"
            )

    @property
    def is_compiled(self) -> bool:
        """Whether training needs torch.compile."""
        return self.name in COMPILED

    @property
    def has_operator(self) -> bool:
        """Whether convolutions aggregate by the operator of operator.py."""
        return self.is_compiled or self.name == "autocast"
