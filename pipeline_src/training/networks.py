"""From a method's specification to a network that keeps what the method says."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline_src.gnn.lean import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork, Keep
from pipeline_src.graphs.graph import Graph
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.projection import count_projected
from pipeline_src.quant.rectified import RectifiedCoder
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec

if TYPE_CHECKING:
    from pipeline_src.gnn.pyg_network import PygNetwork

# (bits, block size, of one side of ReLU?) -> boundaries in bin units
BoundariesOf = Callable[[int, int, bool], tuple[float, ...]]


def build_network(
    spec: RunSpec,
    graph: Graph,
    boundaries_of: BoundariesOf | None,
    compile: str,
    keep: Keep | None = None,  # replaces what the method of the spec keeps
) -> "GraphNetwork | PygNetwork":
    """The network of a specification, on the device of the graph.

    Raises:
        ValueError: if the method asks for torch.compile and nothing may be compiled.
    """
    model, method, device = spec.model, spec.method, graph.features.device
    shape: dict[str, Any] = {
        "layer": model.layer,
        "num_features": graph.num_features,
        "hidden": model.hidden,
        "num_classes": graph.num_classes,
        "num_layers": model.num_layers,
        "dropout": model.dropout,
        "batch_norm": model.batch_norm,
    }
    if method.policy == "pyg" and keep is None:
        # PyTorch Geometric takes seconds to import, and no other method needs it.
        from pipeline_src.gnn.pyg_network import COMPILED, PygNetwork

        if method.technique in COMPILED and compile == "false":
            raise ValueError(
                f"method {method.name} is torch.compile itself, but compile is false "
                "or no compiler was found; set compile: auto and install g++"
            )
        return PygNetwork(
            **shape,
            technique=method.technique,
            bits=method.bits,
            memory_budget=method.memory_budget,
        ).to(device)
    return GraphNetwork(
        **shape,
        keep=keep or keep_of(method, boundaries_of, compile, device),
        compile=compile,
        lean=lean_of(method, model, graph.num_features, boundaries_of, compile, device),
    ).to(device)


def keep_of(
    method: MethodSpec,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> Keep | None:
    """What a method keeps of each activation; None if it is not asked that way.

    Raises:
        ValueError: if the method needs solved boundaries and none are given.
    """
    if method.policy != "exact":
        return None
    solved = _solved_boundaries(method, boundaries_of)

    def keep(name: str, width: int, may_project: bool) -> Compressor:
        ratio = method.projection_ratio if may_project else 1
        size = block_size(count_projected(width, ratio), method)
        bits = _bits_of(method, name)
        boundaries = solved(bits, size, False)
        return Compressor(bits, size, ratio, boundaries, compile).to(device)

    return keep


def _bits_of(method: MethodSpec, name: str) -> int:
    """Bits of an activation such as layer2.input or layer1.batch_norm.

    An input takes the bits of the hidden layer it lies behind, the network's input
    those of the first.
    """
    if not method.layer_bits:
        return method.bits
    layer, part = name.split(".")
    hidden = int(layer.removeprefix("layer")) - (1 if part == "batch_norm" else 2)
    return method.layer_bits[max(hidden, 0)]


def lean_of(
    method: MethodSpec,
    model: ModelSpec,
    num_features: int,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> LeanRecipe | None:
    """How a method with policy lean keeps hidden layers; None for other policies.

    Raises:
        ValueError: if the method needs solved boundaries and none are given.
    """
    if method.policy != "lean":
        return None
    num_hidden = model.num_layers - 1
    layer_bits = method.layer_bits or (method.bits,) * num_hidden
    solved = _solved_boundaries(method, boundaries_of)
    sided = "sided_codes" not in method.without
    size = method.rows_per_block * model.hidden
    coders: list[Compressor | RectifiedCoder] = []
    for bits in layer_bits:
        boundaries = solved(bits, size, sided and bits != 32)
        if sided and bits != 32:
            coder = RectifiedCoder(bits, method.rows_per_block, boundaries)
            coders.append(coder.to(device))
        else:
            compressor = Compressor(bits, size, 1, boundaries, compile)
            coders.append(compressor.to(device))
    copies = []
    if method.without:
        widths = [num_features, *(model.hidden for _ in range(num_hidden))]
        # A copy takes the bits of the layer it lies behind; the first, of the first.
        bits_of_copies = [*layer_bits[:1], *layer_bits] or [method.bits]
        copies = [
            Compressor(
                bits,
                method.rows_per_block * count_projected(width, method.projection_ratio),
                method.projection_ratio,
                compile=compile,
            )
            for bits, width in zip(bits_of_copies, widths, strict=True)
        ]
    return LeanRecipe(
        tuple(coders),
        method.rows_per_block,
        tuple(copies),
        frozenset(method.without),
        compile,
    )


def _solved_boundaries(
    method: MethodSpec, boundaries_of: BoundariesOf | None
) -> Callable[[int, int, bool], Tensor | None]:
    """Boundaries as a tensor, for (bits, block size, sided); None for even ones."""
    if method.needs_boundaries and boundaries_of is None:
        raise ValueError(
            f"method {method.name} reads its boundaries from the solver's table; pass "
            "boundaries_of=read_boundaries(path)"
        )

    def solved(bits: int, block_size: int, sided: bool) -> Tensor | None:
        if not method.needs_boundaries or boundaries_of is None or bits in (1, 32):
            return None
        return torch.tensor(boundaries_of(bits, block_size, sided))

    return solved


def block_size(width: int, method: MethodSpec) -> int:
    """Values per block: rows_per_block whole rows, capped as published.

    The published kernels use one thread per value of a block, hence at most 1024 of
    them; a block never holds less than a row.
    """
    rows = min(method.rows_per_block, max(1, method.max_block_size // width))
    return rows * width
