"""From a specification to a network, in three values that are made once each.

    shape = shape_of(model, graph)                    how the network looks
    keeper = keeper_of(method, shape, ...)            what is kept for backward, and how
    network = build_network(shape, keeper, compile)   the two together

The method's specification alone decides the keeper: nothing later asks for the policy.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork, Keep
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.graph import Graph
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.projection import count_projected
from pipeline_src.quant.rectified import RectifiedCoder
from pipeline_src.training.spec import BoundariesOf, MethodSpec, ModelSpec

if TYPE_CHECKING:
    from pipeline_src.gnn.pyg.network import PygNetwork

# None: PyTorch keeps what it keeps.
Keeper = Keep | LeanRecipe | Technique | CompressionConfig | None


def shape_of(model: ModelSpec, graph: Graph) -> NetworkShape:
    """The shape that a model takes on a graph."""
    return NetworkShape(
        model.layer,
        graph.num_features,
        model.hidden,
        graph.num_classes,
        model.num_layers,
        model.dropout,
        model.batch_norm,
    )


def keeper_of(
    method: MethodSpec,
    shape: NetworkShape,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> Keeper:
    """What a method keeps for backward, and in which form.

    Raises:
        ValueError: if the method needs solved boundaries and none are given, or asks
            for torch.compile and nothing may be compiled.
    """
    match method.policy:
        case "exact":
            return _published(method, boundaries_of, compile, device)
        case "lean":
            return _lean(method, shape, boundaries_of, compile, device)
        case "pyg":
            technique = Technique(method.technique, method.bits, method.memory_budget)
            if technique.is_compiled and compile == "false":
                raise ValueError(
                    f"method {method.name} is torch.compile itself, but compile is "
                    "false or no compiler was found; set compile: auto and install g++"
                )
            return technique
        case "compress":
            return CompressionConfig(bits=method.bits)
    return None


def build_network(
    shape: NetworkShape, keeper: Keeper, compile: str
) -> "GraphNetwork | PygNetwork":
    """The network, on the CPU, with parameters of torch's global generator."""
    if isinstance(keeper, Technique | CompressionConfig):
        # PyTorch Geometric takes seconds to import, and no other method needs it.
        from pipeline_src.gnn.pyg.network import PygNetwork

        if isinstance(keeper, Technique):
            return PygNetwork(shape, keeper)
        # Each run rounds with noise of its own.
        config = replace(keeper, seed=torch.initial_seed())
        return compress(PygNetwork(shape, Technique()), config)
    return GraphNetwork(shape, keeper, compile)


def _published(
    method: MethodSpec,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> Keep:
    """The layout of EXACT: each operation's input, compressed."""
    solved = _solved_boundaries(method, boundaries_of)

    def keep(name: str, width: int, may_project: bool) -> Compressor:
        ratio = method.projection_ratio if may_project else 1
        size = method.block_size(count_projected(width, ratio))
        bits = method.bits_of(name)
        boundaries = solved(bits, size)
        return Compressor(bits, size, ratio, boundaries, compile).to(device)

    return keep


def _lean(
    method: MethodSpec,
    shape: NetworkShape,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> LeanRecipe:
    """The layout of gnn/lean: one code per hidden value, and copies for ablation."""
    layer_bits = method.layer_bits or (method.bits,) * shape.num_hidden
    solved = _solved_boundaries(method, boundaries_of)
    sided = "sided_codes" not in method.without
    size = method.rows_per_block * shape.hidden
    coders: list[Compressor | RectifiedCoder] = []
    for bits in layer_bits:
        if sided and bits != 32:
            coders.append(RectifiedCoder(bits, method.rows_per_block))
        else:
            boundaries = solved(bits, size)
            compressor = Compressor(bits, size, 1, boundaries, compile)
            coders.append(compressor.to(device))
    copies = []
    if method.without:
        # A copy takes the bits of the layer it lies behind; the first, of the first.
        bits_of_copies = [*layer_bits[:1], *layer_bits] or [method.bits]
        copies = [
            Compressor(
                bits,
                method.rows_per_block * count_projected(width, method.projection_ratio),
                method.projection_ratio,
                compile=compile,
            )
            for bits, width in zip(bits_of_copies, shape.widths[:-1], strict=True)
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
) -> Callable[[int, int], Tensor | None]:
    """Boundaries as a tensor, for (bits, block size); None for even ones."""
    if method.needs_boundaries and boundaries_of is None:
        raise ValueError(
            f"method {method.name} reads its boundaries from the solver's table; pass "
            "boundaries_of=read_boundaries(path)"
        )

    def solved(bits: int, block_size: int) -> Tensor | None:
        if not method.needs_boundaries or boundaries_of is None or bits in (1, 32):
            return None
        return torch.tensor(boundaries_of(bits, block_size))

    return solved
