"""The same networks as a user of PyTorch Geometric trains them, to compare with.

Layers, blocks and hyper-parameters are those of gnn/models.py, and so are the first
parameters and, under one seed of torch, the Dropout masks; convolutions are PyTorch
Geometric's own. A `technique` says how memory is saved, with what PyTorch has for it:

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

quantized_hooks stands for GACT (Liu et al., ICML 2022) as its code has it: blocks of
256 values, random rounding, parameters passed through by their address. It is given
two things that GACT leaves off: a tensor that several operations save is kept once,
and the aggregated features of the graph are compressed though they have no gradient.

torch.compile splits a network at each product with a sparse matrix, and plans nothing
across the pieces. So the compiled techniques take the product as an operator of its
own, with the transpose at hand, that the compiler need not look into. That is more
than SAGEConv gives, and faster: elsewhere backward is PyTorch's, which transposes the
matrix at every step. autocast takes the operator too, because on a CPU GCNConv's
product does not know bfloat16.

Compiled Dropout draws numbers of its own. Where the first step after
`torch.compiler.reset()` runs under `torch._inductor.config.patch(fallback_random=True)`
it draws those of the other techniques. A budget may have Dropout computed again, and
torch.compile then draws other numbers in backward: gradients would be wrong. So
`budget` draws its masks before the graph, as the other techniques do, and keeps them.
"""

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import GCNConv, SAGEConv

from pipeline_src.gnn.aggregation import gcn_aggregation, mean_aggregation
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.bitmask import pack_mask
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks
from pipeline_src.quant.references import Reference, check_unchanged, watch

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
HOOK_BLOCK_SIZE = 256  # values; group_size of GACT
# Smaller tensors, such as the statistics of BatchNorm, stay as they are.
HOOK_MIN_NUMEL = 1024
MAX_COMPILATIONS = 64  # of the forward pass: one per model, graph and budget


# What a convolution takes for an edge_index: a sparse CSR matrix, row by receiver, as
# adj_t; for the operator the row pointer, column and values of it and of its transpose.
Edges = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class PygAggregation:
    """Neighbours in the form that the convolutions take."""

    edges: Edges  # float32 values; int32 indices for the operator, else int64
    half: Edges | None = None  # the same in bfloat16, for autocast

    def tensors(self) -> list[Tensor]:
        """The dense tensors behind it; some may share their storage."""
        return [*_dense(self.edges), *([] if self.half is None else _dense(self.half))]


class PygNetwork(nn.Module):
    """Convolutions of PyTorch Geometric, BatchNorm, ReLU and Dropout between them."""

    num_seeds = 0  # a step needs none

    def __init__(
        self,
        layer: str,  # "sage" or "gcn"
        num_features: int,
        hidden: int,
        num_classes: int,
        num_layers: int,
        dropout: float,
        batch_norm: bool,
        technique: str = "eager",  # one of TECHNIQUES
        bits: int = 32,  # of codes; quantized_hooks only
        memory_budget: float = 1.0,  # of what is kept at most; budget only
    ) -> None:
        """Build with the parameters that GraphNetwork draws in its place.

        Raises:
            ValueError: if layer or technique is unknown, num_layers is below 1, or
                bits do not fit the technique.
        """
        super().__init__()
        if technique not in TECHNIQUES:
            raise ValueError(
                f"technique must be one of {TECHNIQUES}, got {technique!r}"
            )
        if technique == "quantized_hooks" and bits not in HOOK_BITS:
            raise ValueError(f"quantized_hooks needs bits in {HOOK_BITS}, got {bits}")
        first = GraphNetwork(
            layer, num_features, hidden, num_classes, num_layers, dropout, batch_norm
        )
        self.layer = layer
        self.technique = technique
        self.bits = bits
        self.memory_budget = memory_budget
        self.hidden = hidden
        self.dropout = dropout
        self.activation_names: list[str] = []
        kinds = (SAGEConv, GCNConv)
        self.has_operator = technique in (*COMPILED, "autocast")
        if self.has_operator:
            kinds = (OperatorSage, OperatorGcn)
        widths = [num_features, *[hidden] * (num_layers - 1), num_classes]
        with torch.random.fork_rng():  # their own first parameters are not used
            self.convolutions = nn.ModuleList(
                # The aggregation is normalised once, not by each layer.
                kinds[0](*pair) if layer == "sage" else kinds[1](*pair, normalize=False)
                for pair in itertools.pairwise(widths)
            )
        self.norms = first.norms
        self.copy_parameters(first)
        # Drawn beside torch's global generator, which Dropout must find as it was.
        self._rounding = torch.Generator().manual_seed(torch.initial_seed())

    @torch.no_grad()
    def copy_parameters(self, network: GraphNetwork) -> None:
        """Take the parameters and statistics of a network of the same shape."""
        self.norms.load_state_dict(network.norms.state_dict())
        names = {  # PyTorch Geometric's: ours
            "lin_l.weight": "neighbor.weight",
            "lin_l.bias": "neighbor.bias",
            "lin_r.weight": "root.weight",
        }
        if self.layer == "gcn":
            names = {"lin.weight": "weight", "bias": "bias"}
        for own, other in zip(self.convolutions, network.convolutions, strict=True):
            for theirs, name in names.items():
                own.get_parameter(theirs).copy_(other.get_parameter(name))

    def aggregation(self, adjacency: Adjacency) -> PygAggregation:
        """The aggregation that this network uses on a graph, normalised once."""
        if self.layer == "sage":
            ours = mean_aggregation(adjacency)
            if not self.has_operator:
                # SAGEConv takes the mean itself and reads no values but ones.
                row_pointer, column, values = _parts(ours.matrix)
                ones = torch.ones_like(values)
                return PygAggregation(_wide(_csr(row_pointer, column, ones)))
            adj_t, transposed = ours.matrix, ours.transposed_matrix
        else:
            ours = gcn_aggregation(adjacency)
            adj_t = _with_loops(ours.matrix, cast(Tensor, ours.self_weight))
            transposed = adj_t
            if not adjacency.symmetric:
                loops = cast(Tensor, ours.self_weight)
                transposed = _with_loops(ours.transposed_matrix, loops)
            if not self.has_operator:
                return PygAggregation(_wide(adj_t))
        edges = *_parts(adj_t), *_parts(transposed)
        if self.technique != "autocast":
            return PygAggregation(edges)
        return PygAggregation(
            edges,
            tuple(
                part.to(torch.bfloat16) if part.is_floating_point() else part
                for part in edges
            ),
        )

    def forward(
        self,
        x: Tensor,  # (num_nodes, num_features)
        aggregation: PygAggregation,
        seeds: Tensor | None = None,  # not used: GraphNetwork takes them here
    ) -> Tensor:
        """Logits, (num_nodes, num_classes) float32."""
        if not self.training:
            return forward_pass(self, x, aggregation.edges)
        if self.technique in COMPILED:
            if self.technique == "compiled":
                return _compiled(1.0)(self, x, aggregation.edges)
            masks = self._draw_masks(x)
            return _compiled(self.memory_budget)(self, x, aggregation.edges, masks)
        if self.technique == "autocast":
            half = cast(Edges, aggregation.half)
            with torch.autocast(x.device.type, torch.bfloat16):
                logits = forward_pass(self, x.to(torch.bfloat16), half)
            # as autocast does where the loss begins
            return logits.to(torch.float32)
        if self.technique == "checkpointing":
            return forward_pass(self, x, aggregation.edges, block=checkpointed_block)
        with self._hooks(x, aggregation):
            return forward_pass(self, x, aggregation.edges)

    def check_finite(self) -> None:
        """Nothing: the loss tells, and no code hides a NaN from it."""

    def _draw_masks(self, x: Tensor) -> list[Tensor]:
        """Dropout's mask of each hidden layer, (num_nodes, hidden) bool."""
        if self.dropout == 0:
            return []
        ones = x.new_ones(len(x), self.hidden)
        hidden_layers = self.convolutions[:-1]
        return [
            torch.native_dropout(ones, self.dropout, True)[1] for _ in hidden_layers
        ]

    def _hooks(
        self, x: Tensor, aggregation: PygAggregation
    ) -> AbstractContextManager[Any]:
        """What is done to each tensor that autograd saves."""
        resident = {
            tensor.data_ptr(): name
            for name, tensor in (
                ("x", x),
                *self.named_parameters(),
                *self.named_buffers(),
                *(("the aggregation's matrix", part) for part in aggregation.tensors()),
            )
        }
        if self.technique == "offload":
            hooks = save_on_cpu(pin_memory=x.device.type == "cuda")
            return keep_instead(hooks.pack_hook, hooks.unpack_hook, resident)
        if self.technique == "quantized_hooks":
            quantize = functools.partial(
                quantize_saved, bits=self.bits, generator=self._rounding
            )
            return keep_instead(quantize, dequantize_saved, resident)
        return contextlib.nullcontext()


# --- the forward pass -----------------------------------------------------------------

Block = Callable[[PygNetwork, int, Tensor, Edges, Tensor | None], Tensor]


def hidden_block(
    network: PygNetwork,
    index: int,
    x: Tensor,
    edges: Edges,
    mask: Tensor | None,  # of Dropout, (num_nodes, hidden) bool; None: drawn here
) -> Tensor:
    """Convolution, BatchNorm, ReLU, Dropout."""
    x = network.convolutions[index](x, edges)
    if len(network.norms):
        x = network.norms[index](x)
    x = torch.relu(x)
    if mask is not None:
        return x * mask * (1.0 / (1.0 - network.dropout))
    if network.training and network.dropout > 0:
        # Not functional.dropout: on a CPU that keeps its mask in float32.
        x = torch.native_dropout(x, network.dropout, True)[0]
    return x


def forward_pass(
    network: PygNetwork,
    x: Tensor,
    edges: Edges,
    masks: Sequence[Tensor] = (),  # of Dropout, one per hidden layer, or none
    block: Block = hidden_block,
) -> Tensor:
    """Logits, (num_nodes, num_classes)."""
    last = len(network.convolutions) - 1
    for index in range(last):
        x = block(network, index, x, edges, masks[index] if masks else None)
    return network.convolutions[last](x, edges)


def checkpointed_block(
    network: PygNetwork, index: int, x: Tensor, edges: Edges, mask: Tensor | None
) -> Tensor:
    """hidden_block that keeps its input alone; BatchNorm counts the batch once."""
    norms = [cast(nn.BatchNorm1d, norm) for norm in network.norms[index : index + 1]]
    parts = (network.convolutions[index], *norms)
    references = watch(
        [
            ("the input of a block", x),
            *(("the aggregation's matrix", part) for part in _dense(edges)),
            *(named for part in parts for named in part.named_parameters()),
        ]
    )
    contexts = contextlib.nullcontext(), _as_in_forward(norms, references)
    return checkpoint(
        hidden_block,
        network,
        index,
        x,
        edges,
        mask,
        use_reentrant=False,
        context_fn=lambda: contexts,
    )


@contextlib.contextmanager
def _as_in_forward(
    norms: list[nn.BatchNorm1d], references: tuple[Reference, ...]
) -> Iterator[None]:
    """Compute again from the same tensors, leaving running statistics alone."""
    check_unchanged(references)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, values in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = values


@functools.cache
def _compiled(budget: float) -> Callable[..., Tensor]:
    """forward_pass under torch.compile, for all networks with one memory budget.

    The budget is a setting of the whole process, so it is set while this function is
    compiled and at no other time. The backend is told apart by its identity: what one
    budget compiled is never taken for another.
    """
    from torch._dynamo import config

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._functorch import config as functorch_config
        from torch._inductor.compile_fx import compile_fx

        with functorch_config.patch(activation_memory_budget=budget):
            return compile_fx(graph, inputs)

    config.recompile_limit = max(config.recompile_limit, MAX_COMPILATIONS)
    return torch.compile(forward_pass, backend=backend, fullgraph=True, dynamic=False)


# --- aggregation as an operator -------------------------------------------------------


@torch.library.custom_op("pipeline_src::aggregate", mutates_args=())
def aggregate(
    x: Tensor,  # (num_nodes, width)
    row_pointer: Tensor,
    column: Tensor,
    values: Tensor,  # of the dtype of x
    back_row_pointer: Tensor,  # the transpose
    back_column: Tensor,
    back_values: Tensor,
) -> Tensor:
    """The product of a sparse CSR matrix and features."""
    matrix = _csr(row_pointer, column, values)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return torch.sparse.mm(matrix, x, "sum")  # the other has no bfloat16 there
    output = torch.empty_like(x)
    # torch.sparse.mm would make a second tensor of this size on the way.
    return torch.addmm(output, matrix, x, beta=0, out=output)


@aggregate.register_fake
def _(x: Tensor, *parts: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_matrices(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if any(tensor.requires_grad for tensor in inputs[1:]):
        raise ValueError("weights of edges take no gradient; pass values.detach()")
    ctx.save_for_backward(*inputs[1:])


def _aggregate_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    parts = ctx.saved_tensors
    return aggregate(gradient.contiguous(), *parts[3:], *parts[:3]), *[None] * 6


aggregate.register_autograd(_aggregate_backward, setup_context=_keep_matrices)


@register_flop_formula(torch.ops.pipeline_src.aggregate)
def _aggregate_flops(
    x: torch.Size, row_pointer: torch.Size, column: torch.Size, *parts: Any, **_: Any
) -> int:
    """Multiplications and additions; a memory budget weighs recomputation by them."""
    return 2 * column[0] * x[1]


class OperatorSage(SAGEConv):
    """SAGEConv with the operator in place of its message passing."""

    def propagate(self, edge_index: tuple[Tensor, ...], **tensors: Any) -> Tensor:
        """The mean over neighbours."""
        return aggregate(tensors["x"][0], *edge_index)


class OperatorGcn(GCNConv):
    """GCNConv with the operator in place of its message passing."""

    def propagate(self, edge_index: tuple[Tensor, ...], **tensors: Any) -> Tensor:
        """The weighted sum over neighbours and the node itself."""
        return aggregate(tensors["x"], *edge_index)


def _dense(edges: Edges) -> tuple[Tensor, ...]:
    return _parts(edges) if isinstance(edges, Tensor) else edges


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Detached, because torch.compile takes no view of a sparse tensor.
    return matrix.crow_indices(), matrix.col_indices(), matrix.values().detach()


def _csr(row_pointer: Tensor, column: Tensor, values: Tensor) -> Tensor:
    num_nodes = row_pointer.numel() - 1
    size = (num_nodes, num_nodes)
    return torch.sparse_csr_tensor(
        row_pointer, column, values, size=size, check_invariants=False
    )


def _wide(matrix: Tensor) -> Tensor:
    """The same with int64 indices, as PyTorch Geometric's users have them.

    Not only for that: with int32 the backward of torch.sparse.mm(..., reduce) is wrong
    from 46,341 nodes on, whose square no int32 holds.
    """
    row_pointer, column, values = _parts(matrix)
    return _csr(row_pointer.long(), column.long(), values)


def _with_loops(matrix: Tensor, self_weight: Tensor) -> Tensor:
    """The same matrix with a weight on its diagonal; entries there add up."""
    row_pointer, column, values = _parts(matrix)
    nodes = torch.arange(len(self_weight), device=column.device)
    rows = nodes.repeat_interleave(row_pointer.diff())
    entries = torch.sparse_coo_tensor(
        torch.stack([torch.cat([rows, nodes]), torch.cat([column.long(), nodes])]),
        torch.cat([values, self_weight.view(-1)]),
        size=matrix.shape,
        check_invariants=False,
    )
    row_pointer, column, values = _parts(entries.coalesce().to_sparse_csr())
    return _csr(row_pointer.to(torch.int32), column.to(torch.int32), values)


# --- hooks on saved tensors -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SavedTensor:
    """What stands for a saved tensor; shared by all operations that saved it."""

    content: Any
    version: int  # of the tensor that was saved
    same: tuple[Reference, ...]  # to it, where its own memory is in the content


def keep_instead(
    pack: Callable[[Tensor], Any],
    unpack: Callable[[Any], Tensor],
    resident: dict[int, str],  # addresses that are alive anyway, and names for them
) -> saved_tensors_hooks:
    """Autograd keeps pack(tensor) of each saved tensor that is not resident.

    Under hooks autograd does not look whether a tensor was changed since; what is
    kept as it is, is watched here.
    """
    # The tensor dies with its last user, and the packed one must die with the graph.
    seen = WeakTensorKeyDictionary()

    def hook(tensor: Tensor) -> Any:
        if tensor.layout != torch.strided:
            return watch([("the aggregation's matrix", tensor)])
        if tensor.data_ptr() in resident:
            return watch([(resident[tensor.data_ptr()], tensor)])
        known = seen[tensor]() if tensor in seen else None
        if known is None or known.version != tensor._version:
            content = pack(tensor)
            parts = content if isinstance(content, tuple) else (content,)
            same = any(
                isinstance(part, Tensor) and part.data_ptr() == tensor.data_ptr()
                for part in parts
            )
            watched = watch([("an activation", tensor)]) if same else ()
            known = SavedTensor(content, tensor._version, watched)
            seen[tensor] = weakref.ref(known)
        return known

    def unhook(kept: SavedTensor | tuple[Reference]) -> Tensor:
        if isinstance(kept, SavedTensor):
            check_unchanged(kept.same)
            return unpack(kept.content)
        check_unchanged(kept)
        return kept[0].tensor

    return saved_tensors_hooks(hook, unhook)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes of a float32 tensor, or the bits of a mask."""

    shape: torch.Size
    bits: int  # 1 is a mask
    packed: Tensor
    zero_point: Tensor | None = None
    scale: Tensor | None = None


def quantize_saved(
    tensor: Tensor, bits: int, generator: torch.Generator
) -> QuantizedTensor | Tensor:
    """Codes in blocks of 256 values; a mask at one bit; small tensors as they are."""
    if tensor.numel() < HOOK_MIN_NUMEL:
        return tensor
    if tensor.dtype == torch.bool:
        return QuantizedTensor(tensor.shape, 1, pack_mask(tensor))
    if tensor.dtype != torch.float32:
        return tensor
    # Drawn on the CPU, so that no device is waited for.
    draw = int(torch.randint(-(2**31), 2**31, (), generator=generator))
    seed = torch.full((), draw, dtype=torch.int32, device=tensor.device)
    codes = compress_blocks(tensor, seed, bits, HOOK_BLOCK_SIZE)
    return QuantizedTensor(tensor.shape, bits, *codes)


def dequantize_saved(kept: QuantizedTensor | Tensor) -> Tensor:
    """The tensor that autograd gets in backward."""
    if isinstance(kept, Tensor):
        return kept
    if kept.zero_point is None or kept.scale is None:
        shift = torch.arange(8, dtype=torch.uint8, device=kept.packed.device)
        mask = (kept.packed >> shift[:, None]) & 1
        return mask.view(-1)[: kept.shape.numel()].view(kept.shape).to(torch.bool)
    return decompress_blocks(
        kept.packed, kept.zero_point, kept.scale, kept.shape, kept.bits
    )
