"""Laws that every operation of the library keeps with autograd.

For each: whatever needs a gradient gets the right one; a tensor that is changed
between forward and backward is refused or was not needed; gradients of gradients are
refused or right.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

import pipeline_src
from pipeline_src.distributed.batch_norm import (
    SyncedBatchNorm,
    SyncedBatchNormalization,
)
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.gnn.aggregation import Aggregation, mean_aggregation
from pipeline_src.gnn.attention import GcnAggregate
from pipeline_src.gnn.batch_norm import BatchNorm
from pipeline_src.gnn.feature_bits import uniform_bits
from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.lean.layers import LeanLayer
from pipeline_src.gnn.lean.network import LeanNetwork
from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.pyg.network import PygNetwork
from pipeline_src.gnn.pyg.operator import aggregate
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.quantized_points import QuantizedPoints, StraightThrough
from pipeline_src.gnn.saved import (
    Aggregate,
    BatchNormalization,
    DropoutWithBitMask,
    GcnConvolution,
    ReluWithBitMask,
    SageConvolution,
)
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.graphs.sparse_features import SparseFeatures, _SparseProduct
from pipeline_src.quant.compressor import Compressor

NODES, WIDTH, OUTPUTS = 40, 6, 4
GRAPH = synthetic_graph(NODES, 150, WIDTH, OUTPUTS, seed=2)
EDGES = torch.randint(0, NODES, (2, 90), generator=torch.Generator().manual_seed(5))
DIRECTED = adjacency_from_edges(*EDGES.numpy(), NODES, symmetrize=False)
KEPT_WHOLE = Compressor(32)
# Sums over nodes, neighbours and features through at most two layers, and back.
ROUNDING = 4 * NODES * 2.0**-24


@dataclass
class Case:
    """An operation, the same in plain operations, and what it takes."""

    operation: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: dict[str, Tensor]  # that may need a gradient
    kept: dict[str, Tensor]  # other tensors that it may keep


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeds(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32)


def flags(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def fresh_aggregation() -> Aggregation:
    return mean_aggregation(DIRECTED)


def values_of(aggregation: Aggregation) -> dict[str, Tensor]:
    return {
        "values": aggregation.matrix.values(),
        "transposed values": aggregation.transposed_matrix.values(),
    }


def sage() -> Case:
    aggregation, seed = fresh_aggregation(), seeds(2)
    dense = aggregation.matrix.to_dense()
    both = (KEPT_WHOLE, KEPT_WHOLE)
    return Case(
        lambda x, w, b, r: SageConvolution.apply(
            x, w, b, r, aggregation, both, seed, flags(2)
        ),
        lambda x, w, b, r: dense @ x @ w.T + b + x @ r.T,
        {
            "x": normal(NODES, WIDTH),
            "weight": normal(OUTPUTS, WIDTH, seed=1),
            "bias": normal(OUTPUTS, seed=2),
            "root": normal(OUTPUTS, WIDTH, seed=3),
        },
        {"seeds": seed, **values_of(aggregation)},
    )


def gcn() -> Case:
    aggregation, seed = fresh_aggregation(), seeds(1)
    dense = aggregation.matrix.to_dense()
    return Case(
        lambda x, w, b: GcnConvolution.apply(
            x, w, b, aggregation, KEPT_WHOLE, seed, flags(1)
        ),
        lambda x, w, b: dense @ (x @ w.T) + b,
        {
            "x": normal(NODES, WIDTH),
            "weight": normal(OUTPUTS, WIDTH, seed=1),
            "bias": normal(OUTPUTS, seed=2),
        },
        {"seeds": seed, **values_of(aggregation)},
    )


def batch_norm(by_batch: bool) -> Callable[[], Case]:
    def case() -> Case:
        mean, seed = normal(WIDTH, seed=3), seeds(1)
        variance = normal(WIDTH, seed=4).square() + 0.5
        # Clones: in training they are moved, which is no part of the function.
        running = (mean.clone(), variance.clone()) if by_batch else (mean, variance)
        rest = (by_batch, 0.1, 1e-5, KEPT_WHOLE, seed, flags(1))
        return Case(
            lambda x, w, b: BatchNormalization.apply(x, w, b, *running, *rest),
            lambda x, w, b: functional.batch_norm(
                x, mean.clone(), variance.clone(), w, b, by_batch
            ),
            {
                "x": normal(NODES, WIDTH),
                "weight": normal(WIDTH, seed=1),
                "bias": normal(WIDTH, seed=2),
            },
            {"running mean": running[0], "running variance": running[1], "seed": seed},
        )

    return case


def synced_batch_norm() -> Case:
    """Of one rank; tests/distributed has several."""
    module = SyncedBatchNorm(WIDTH, Ranks())
    norm, coder, seed = BatchNorm.of(module), Compressor(32), seeds(1)
    return Case(
        lambda x, w, b: SyncedBatchNormalization.apply(
            x, w, b, module, norm, coder, seed, flags(1)
        ),
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, True),
        {
            "x": normal(NODES, WIDTH),
            "weight": normal(WIDTH, seed=1),
            "bias": normal(WIDTH, seed=2),
        },
        {"seed": seed},
    )


def relu() -> Case:
    return Case(
        lambda x: ReluWithBitMask.apply(x, "false"),
        torch.relu,
        {"x": normal(NODES, WIDTH)},
        {},
    )


def dropout() -> Case:
    def seeded(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            torch.manual_seed(4)
            return function(x)

        return call

    return Case(
        seeded(lambda x: DropoutWithBitMask.apply(x, 0.5, "false")),
        seeded(lambda x: torch.native_dropout(x, 0.5, True)[0]),
        {"x": normal(NODES, WIDTH)},
        {},
    )


def aggregation() -> Case:
    aggregation = fresh_aggregation()
    dense = aggregation.matrix.to_dense()
    return Case(
        lambda x: Aggregate.apply(x, aggregation),
        lambda x: dense @ x,
        {"x": normal(NODES, WIDTH)},
        values_of(aggregation),
    )


def gcn_aggregate() -> Case:
    plan = MessagePlan.of(DIRECTED, None, WIDTH)
    matrix = plan.gcn.matrix.to_dense() + torch.diag(plan.gcn.self_weight[:, 0])
    return Case(
        lambda x: GcnAggregate.apply(x, plan),
        lambda x: matrix @ x,
        {"x": normal(NODES, WIDTH)},
        {**values_of(plan.gcn), "self weight": plan.gcn.self_weight},
    )


def straight_through() -> Case:
    return Case(
        lambda x: StraightThrough.apply(x, torch.round),
        lambda x: x + (torch.round(x) - x).detach(),
        {"x": normal(NODES, WIDTH)},
        {},
    )


def sparse_product() -> Case:
    features = SparseFeatures.of(functional.relu(normal(NODES, WIDTH, seed=7)))
    dense = functional.relu(normal(NODES, WIDTH, seed=7))
    return Case(
        lambda w: features.linear(w, 0.0, True),
        lambda w: dense @ w.T,
        {"weight": normal(OUTPUTS, WIDTH)},
        {"values": features.values, "row": features.row, "by": features.by_column},
    )


def lean() -> Case:
    aggregation, seed = fresh_aggregation(), seeds(1)
    dense = aggregation.matrix.to_dense()
    boundaries = torch.tensor([0.0, 1.0, 2.0, 3.0])
    coder = Compressor(32, boundaries=boundaries, compile="false")
    recipe = LeanRecipe((coder,), 8, compile="false")

    def operation(x, w, b, r, g, s, w2, b2, r2):
        norm = BatchNorm(g, s, None, None, True, 0.0, 1e-5)
        layers = [LeanLayer(w, b, r, norm), LeanLayer(w2, b2, r2)]
        parameters = [p for layer in layers for p in layer.parameters()]
        rest = (aggregation, layers, recipe, 0.0, seed, flags(1))
        return LeanNetwork.apply(x, *rest, *parameters)

    def plain(x, w, b, r, g, s, w2, b2, r2):
        y = dense @ x @ w.T + b + x @ r.T
        h = torch.relu(functional.batch_norm(y, None, None, g, s, True))
        return dense @ h @ w2.T + b2 + h @ r2.T

    shapes = {
        **{"x": (NODES, WIDTH), "weight": (8, WIDTH), "bias": (8,)},
        **{"root": (8, WIDTH), "norm weight": (8,), "norm bias": (8,)},
        **{"weight2": (OUTPUTS, 8), "bias2": (OUTPUTS,), "root2": (OUTPUTS, 8)},
    }
    inputs = {
        name: normal(*shape, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return Case(
        operation,
        plain,
        inputs,
        {"seeds": seed, "boundaries": boundaries, **values_of(aggregation)},
    )


def operator() -> Case:
    aggregation = fresh_aggregation()
    matrix, transposed = aggregation.matrix, aggregation.transposed_matrix
    parts = [
        part.detach()
        for one in (matrix, transposed)
        for part in (one.crow_indices(), one.col_indices(), one.values())
    ]
    dense = matrix.to_dense()
    return Case(
        lambda x: aggregate(x, *parts),
        lambda x: dense @ x,
        {"x": normal(NODES, WIDTH)},
        {"values": parts[2], "transposed values": parts[5]},
    )


CASES: dict[Any, list[Callable[[], Case]]] = {
    SageConvolution: [sage],
    GcnConvolution: [gcn],
    BatchNormalization: [batch_norm(True), batch_norm(False)],
    SyncedBatchNormalization: [synced_batch_norm],
    ReluWithBitMask: [relu],
    DropoutWithBitMask: [dropout],
    Aggregate: [aggregation],
    GcnAggregate: [gcn_aggregate],
    StraightThrough: [straight_through],
    _SparseProduct: [sparse_product],
    LeanNetwork: [lean],
    "pipeline_src::aggregate": [operator],
}
ALL = [
    pytest.param(case, id=f"{getattr(kind, '__name__', kind)}{i or ''}")
    for kind, cases in CASES.items()
    for i, case in enumerate(cases)
]


def test_every_operation_of_the_library_is_here():
    for module in pkgutil.walk_packages(pipeline_src.__path__, "pipeline_src."):
        importlib.import_module(module.name)
    kinds, waiting = set(), [Function]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        kinds |= {one for one in found if one.__module__.startswith("pipeline_src.")}
    # Reached through rules alone: tests/compression runs each in whole networks. And
    # what lean was chosen from: tests/measuring/lean.
    inside = ("pipeline_src.compression.", "pipeline_src.measuring.lean.")
    kinds = {one for one in kinds if not one.__module__.startswith(inside)}
    assert kinds == {kind for kind in CASES if isinstance(kind, type)}


def leaves(case: Case, wanted: set[str]) -> dict[str, Tensor]:
    return {
        name: tensor.clone().requires_grad_(name in wanted)
        for name, tensor in case.inputs.items()
    }


def weights_like(output: Tensor) -> Tensor:
    return torch.linspace(-1, 1, output.numel()).view_as(output)


def gradients(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict:
    output = function(*inputs.values())
    (output * weights_like(output)).sum().backward()
    return {name: one.grad for name, one in inputs.items()}


def largest_of(found: dict) -> Tensor:
    return max(one.norm() for one in found.values() if one is not None)


def refusal(call: Callable[[], Any]) -> str:
    """The message of the error it raises; empty if it raises none."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def check_equal(found: dict, expected: dict, largest: Tensor | None = None) -> None:
    """To rounding of the largest: a bias in front of BatchNorm has no gradient."""
    if largest is None:
        largest = largest_of(expected)
    for name, one in expected.items():
        if one is None:
            assert found[name] is None, name
            continue
        assert found[name] is not None, f"{name} needs a gradient and got none"
        assert (found[name] - one).norm() <= ROUNDING * largest, name


@pytest.mark.parametrize("make", ALL)
def test_what_needs_a_gradient_gets_the_right_one(make):
    """All inputs, and each alone, as where a part of a network is frozen."""
    case = make()
    names = set(case.inputs)
    largest = largest_of(gradients(case.plain, leaves(case, names)))
    for wanted in (names, *({name} for name in names)):
        case = make()
        expected = gradients(case.plain, leaves(case, wanted))
        found = gradients(case.operation, leaves(case, wanted))
        check_equal(found, expected, largest)


@pytest.mark.parametrize("make", ALL)
def test_what_was_changed_before_backward_is_refused_or_was_not_needed(make):
    case = make()
    expected = gradients(case.operation, leaves(case, set(case.inputs)))
    refused = set()
    for name in (*case.inputs, *case.kept):
        case = make()
        inputs = leaves(case, set(case.inputs))
        output = case.operation(*inputs.values())
        loss = (output * weights_like(output)).sum()
        with torch.no_grad():
            {**inputs, **case.kept}[name].mul_(2).add_(1)
        if message := refusal(loss.backward):
            assert "modified by an inplace operation" in message
            refused.add(name)
        else:
            check_equal({key: one.grad for key, one in inputs.items()}, expected)
    if {"x", "weight"} <= set(case.inputs):
        assert "weight" in refused


@pytest.mark.parametrize("make", ALL)
def test_gradients_of_gradients_are_refused_or_right(make):
    def second(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
        output = function(*inputs.values())
        loss = (output.square() * weights_like(output)).sum()
        found = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
        sum(one.square().sum() for one in found).backward()

    case = make()
    inputs, plain = (leaves(case, set(case.inputs)) for _ in range(2))
    if message := refusal(lambda: second(case.operation, inputs)):
        assert "differentiate twice" in message
        return
    second(case.plain, plain)
    check_equal(*({n: one.grad for n, one in of.items()} for of in (inputs, plain)))


# --- networks -------------------------------------------------------------------------

LABELS = GRAPH.labels


def keep(name: str, width: int, may_project: bool) -> Compressor:
    return Compressor(8, width, compile="false")


def networks(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = NetworkShape("sage", WIDTH, 8, OUTPUTS, 2, 0.0, True)
    if kind == "exact":
        return GraphNetwork(shape, keep, compile="false")
    if kind == "lean":
        coders = (Compressor(8, 64, compile="false"),)
        lean = LeanRecipe(coders, 8, compile="false")
        return GraphNetwork(shape, lean, compile="false")
    bits = 8 if kind == "quantized_hooks" else 32
    return PygNetwork(shape, Technique(kind, bits))


KINDS = (
    *("exact", "lean"),
    *("eager", "autocast", "checkpointing", "offload", "quantized_hooks"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_two_losses_with_a_step_between_are_refused(kind):
    """As in PyTorch: the second backward would read weights that forward never saw."""
    model = networks(kind).train()
    on = model.aggregation(GRAPH.adjacency)
    losses = [
        functional.cross_entropy(
            model(GRAPH.features, on, seeds(model.num_seeds)), LABELS
        )
        for _ in range(2)
    ]
    losses[0].backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[1].backward()


@pytest.mark.parametrize("kind", KINDS)
def test_two_losses_and_then_a_step_are_not_refused(kind):
    model = networks(kind).train()
    on = model.aggregation(GRAPH.adjacency)
    for _ in range(2):
        losses = [
            functional.cross_entropy(
                model(GRAPH.features, on, seeds(model.num_seeds)), LABELS
            )
            for _ in range(2)
        ]
        for loss in losses:
            loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_before_the_network_trains(kind):
    """As features that need a gradient; bfloat16 and 8 bits round it."""
    model, plain = networks(kind).train(), networks("eager").train()
    found = []
    for network in (model, plain):
        x = GRAPH.features.clone().requires_grad_()
        on = network.aggregation(GRAPH.adjacency)
        output = network(x, on, seeds(network.num_seeds))
        functional.cross_entropy(output, LABELS).backward()
        found.append(x.grad)
    assert (found[0] - found[1]).norm() <= 0.1 * found[1].norm()


@pytest.mark.parametrize("kind", ["exact", "lean", "offload", "quantized_hooks"])
def test_a_change_of_x_is_refused_by_name_or_x_was_not_needed(kind):
    """`exact` keeps a copy for the gradients of weights that read x."""
    found = []
    for change in (False, True):
        model = networks(kind).train()
        x = GRAPH.features.clone()
        output = model(x, model.aggregation(GRAPH.adjacency), seeds(model.num_seeds))
        if change:
            x.mul_(2)
        if change and kind != "exact":
            with pytest.raises(RuntimeError, match=r"x, shaped \(40, 6\), is at ver"):
                functional.cross_entropy(output, LABELS).backward()
            return
        functional.cross_entropy(output, LABELS).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *found))


def test_the_error_names_the_tensor_and_the_way_out():
    model = networks("lean").train()
    output = model(GRAPH.features, model.aggregation(GRAPH.adjacency), seeds(1))
    with torch.no_grad():
        model.norms[0].bias.add_(1)
    message = (
        r"layer1 BatchNorm bias, shaped \(8,\), is at version .* expected version .*"
        r"Run backward before the step that changes it .*, or run forward again"
    )
    with pytest.raises(RuntimeError, match=message):
        output.sum().backward()


def test_features_of_inference_mode_are_refused_with_the_way_out():
    with torch.inference_mode():
        x = GRAPH.features * 2
    model = networks("lean").train()
    with pytest.raises(RuntimeError, match=r"x was made under torch.inference_mode"):
        model(x, model.aggregation(GRAPH.adjacency), seeds(1))


def test_sparse_features_that_need_a_gradient_are_refused():
    """Their zeros would need one too; as features and as entries."""
    x = functional.relu(normal(NODES, WIDTH))
    with pytest.raises(ValueError, match=r"pass them dense, or x.detach\(\)"):
        SparseFeatures.of(x.requires_grad_())
    features = SparseFeatures.of(x.detach())
    features.values.requires_grad_()
    with pytest.raises(ValueError, match="take no gradient"):
        features.linear(normal(OUTPUTS, WIDTH), 0.0, True)


def test_weights_of_edges_that_need_a_gradient_are_refused():
    case = operator()
    case.kept["values"].requires_grad_()
    with pytest.raises(ValueError, match=r"pass values.detach\(\)"):
        case.operation(*case.inputs.values())


@pytest.mark.parametrize("model", ["gcn", "agnn", "gat"])
def test_packed_points_that_would_cut_a_gradient_are_refused(model):
    """Without tuning, packed points pass no gradient to the layers before them."""
    torch.manual_seed(0)
    network = FeatureNetwork(model, WIDTH, OUTPUTS)
    bits = uniform_bits(network.num_layers, 4)
    plan = MessagePlan.of(GRAPH.adjacency, bits, network.gathered_width)
    points = QuantizedPoints(bits)
    with pytest.raises(RuntimeError, match=r"no_grad\(\), or tune with straight_thr"):
        network(GRAPH.features, plan, points)
    with torch.no_grad():
        network(GRAPH.features, plan, points)
    x = GRAPH.features.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="packed points pass no gradient"):
        network.pack_input(x, plan, points)
    tuned = QuantizedPoints(bits, straight_through=True)
    network(x, plan, tuned).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
