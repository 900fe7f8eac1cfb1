"""What public doors take: types of numbers, and shapes without values.

One rule for all: half numbers are widened and read as float32, anything but them and
float32 is a TypeError that names what is supported; where there are no values there is
an empty result or one clear error.
"""

import importlib
import inspect
import pkgutil

import pytest
import torch

from pipeline_src import quant
from pipeline_src.gnn.aggregation import mean_aggregation
from pipeline_src.gnn.feature_bits import uniform_bits
from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.pyg.network import PygNetwork
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.gnn.saved import (
    BatchNormalization,
    DropoutWithBitMask,
    ReluWithBitMask,
)
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.graphs.sparse_features import SparseFeatures
from pipeline_src.quant.bitmask import mask_gradient, pack_mask
from pipeline_src.quant.blockwise import (
    check_boundaries,
    compress_blocks,
    decompress_blocks,
)
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.feature_store import (
    RANGES,
    FeatureStore,
    RowGroups,
    RowPacking,
    pack_rows,
)
from pipeline_src.quant.projection import project, projection, unproject
from pipeline_src.quant.rectified import RectifiedCoder
from pipeline_src.quant.segment_store import pack_segments
from pipeline_src.quant.sparse_rows import SparseRows

HALVES = (torch.float16, torch.bfloat16)
REFUSED = (
    *(torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64),
    *(torch.bool, torch.complex64),
)
SEED = torch.tensor(5, dtype=torch.int32)
NODES, WIDTH, CLASSES = 24, 6, 3
GRAPH = synthetic_graph(NODES, 80, WIDTH, CLASSES, seed=1)
ONE_SEGMENT = torch.zeros(NODES, dtype=torch.int64)


def compressed(bits, ratio=1):
    def call(x):
        return Compressor(bits, 7, ratio, compile="false").compress(x, SEED)

    return call


def blocks(x):
    packed, zero_point, scale = compress_blocks(x, SEED, 2, 4, compile="false")
    return decompress_blocks(packed, zero_point, scale, x.shape, 2, compile="false")


def packed(range, bits):
    def call(x):
        packing = RowPacking(range, 3, compile="false")
        return FeatureStore.pack(x, (bits,), packing).decode()

    return call


def segments(x):
    ends = torch.tensor([0, len(x)])
    owner = torch.zeros(len(x), dtype=torch.int64)
    return pack_segments(x, ends, owner, 4, compile="false").decode(owner)


# Each maps values of a supported type to float32.
DOORS = {
    "compress_blocks": blocks,
    **{
        f"Compressor of {bits} bits, ratio {ratio}": lambda x, bits=bits, ratio=ratio: (
            compressed(bits, ratio)(x).decompress()
        )
        for bits in (2, 8, 32)
        for ratio in (1, 2)
    },
    "weight_gradient": lambda x: compressed(8)(
        torch.ones(x.shape[0], 2)
    ).weight_gradient(x),
    "project": lambda x: project(x, SEED, 3),
    "unproject": lambda x: unproject(x, SEED, 8),
    **{
        f"pack by {range}, {bits} bits": packed(range, bits)
        for range in RANGES
        for bits in (1, 16, 32)
    },
    "pack_rows": lambda x: FeatureStore(
        (pack_rows(x, 4, RowPacking()),), None, *x.shape, "false"
    ).decode(),
    "full": lambda x: FeatureStore.full(x).decode(),
    "pack_segments": segments,
    "SparseRows": lambda x: SparseRows.of(x).decode(),
    "SparseFeatures": lambda x: SparseFeatures.of(x).linear(
        torch.ones(2, x.shape[1]), 0.0, False
    ),
}
# Kernels and what they are made of, called behind a door.
INNER_MODULES = {
    *("dtypes", "masked", "noise", "rectified", "row_codes", "shared_noise"),
}
# The same beside a door in its module, or they take codes, masks or seeds.
INNER = {
    *("check_boundaries", "decompress_blocks", "divide", "even_position", "look_up"),
    *("round_down", "round_up", "projection", "pack_mask", "mask_gradient"),
    "unpack_mask",
}


def test_every_function_that_takes_a_tensor_is_a_door_or_behind_one():
    known = {name.split(" ")[0] for name in DOORS}
    for module in pkgutil.iter_modules(quant.__path__):
        if module.name in INNER_MODULES:
            continue
        found = importlib.import_module(f"{quant.__name__}.{module.name}")
        for name, function in inspect.getmembers(found, inspect.isfunction):
            if function.__module__ != found.__name__ or name.startswith("_"):
                continue
            first = next(iter(inspect.signature(function).parameters.values()), None)
            if first is not None and first.annotation is torch.Tensor:
                assert name in known | INNER, f"{module.name}.{name}"


def values():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NODES, WIDTH, generator=generator).relu()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("door", DOORS)
def test_half_numbers_are_taken_as_the_float32_numbers_they_are(door, dtype):
    x = values().to(dtype)
    found, expected = DOORS[door](x), DOORS[door](x.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


WHOLE = ("full", "SparseFeatures")  # keep values and code none


@pytest.mark.parametrize("dtype", REFUSED)
@pytest.mark.parametrize("door", DOORS)
def test_other_types_are_refused_by_name(door, dtype):
    message = (
        r"must be of type torch.float16, torch.bfloat16, torch.float32.*"
        rf"got {dtype}; convert it before"
    )
    if dtype == torch.float64 and door in WHOLE:
        return
    with pytest.raises(TypeError, match=message):
        DOORS[door](values().to(dtype))


def test_doubles_stay_doubles_where_nothing_is_coded():
    x = values().double() / 3
    assert torch.equal(FeatureStore.full(x).decode(), x)
    weight = torch.ones(2, WIDTH, dtype=torch.float64)
    found = SparseFeatures.of(x).linear(weight, 0.0, False)
    assert found.dtype == torch.float64
    # Sums of WIDTH positive values below 2.
    assert torch.all((found - x @ weight.T).abs() <= WIDTH * 2 * WIDTH * 2.0**-53)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_a_masked_gradient_has_the_type_of_the_gradient(dtype):
    gradient = values().to(dtype)
    found = mask_gradient(gradient, pack_mask(gradient > 1), 1 / 0.7, "false")
    expected = torch.where(gradient > 1, gradient.float() * (1 / 0.7), 0.0)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("dtype", REFUSED)
def test_other_tensors_of_the_wrong_type_are_refused(dtype):
    x = values().to(dtype)
    wrong = rf"got {dtype}"
    with pytest.raises(TypeError, match=rf"gradient must be .* {wrong}"):
        mask_gradient(x, pack_mask(values() > 0))
    if dtype != torch.bool:
        with pytest.raises(TypeError, match=rf"mask must be .*torch.bool, {wrong}"):
            pack_mask(x)
    if dtype != torch.int32:
        seed = SEED.to(dtype)
        for call in (
            lambda: compress_blocks(values(), seed, 2, 4),
            lambda: Compressor(32).compress(values(), seed),
            lambda: projection(seed, 4, 2),
        ):
            with pytest.raises(TypeError, match=rf"seed must be .*int32, {wrong}"):
                call()
    with pytest.raises(TypeError, match=rf"boundaries must be .*float32, {wrong}"):
        check_boundaries(torch.tensor([0, 1], dtype=dtype), 1)
    for operation in (
        lambda: ReluWithBitMask.apply(x, "false"),
        lambda: DropoutWithBitMask.apply(x, 0.5, "false"),
        lambda: mean_aggregation(GRAPH.adjacency)(x),
        lambda: BatchNormalization.apply(x, *(None,) * 4, True, *(None,) * 5),
    ):
        with pytest.raises(TypeError, match=wrong):
            operation()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_groups_that_are_no_whole_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"group must be .*int64.* got {dtype}"):
        RowGroups.of(torch.tensor([0, 1]).to(dtype), 2)


SHAPES = [(0, WIDTH), (NODES, 0), (0, 0), (1, WIDTH), (NODES, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("door", [d for d in DOORS if "roject" not in d])
def test_no_rows_no_features_and_one_row_have_a_result_or_a_clear_error(door, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape[1] == 0 and door.startswith(("pack by", "pack_rows")):
        with pytest.raises(ValueError, match="with at least one feature, got"):
            DOORS[door](x)
        return
    found = DOORS[door](x)
    expected = {
        "weight_gradient": (shape[1], 2),
        "SparseFeatures": (shape[0], 2),
    }.get(door, shape)
    assert found.shape == expected
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_projecting_nothing_gives_zeros(shape):
    assert project(torch.randn(shape), SEED, 3).shape == (shape[0], 3)
    assert not unproject(torch.randn(shape[0], 0), SEED, shape[1]).any()


@pytest.mark.parametrize("bits", [2, 32])
def test_what_is_kept_of_nothing_is_finite_and_has_no_bytes(bits):
    kept = compressed(bits)(torch.empty(0, WIDTH))
    assert kept.is_finite
    assert kept.nbytes == SEED.nbytes
    assert not kept.weight_gradient(torch.empty(0, 2)).any()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
def test_an_activation_that_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=r"x must be \(num_nodes, num_features\)"):
        compressed(2)(torch.zeros(shape))


# --- networks -------------------------------------------------------------------------


def network(policy, num_layers=2, batch_norm=True):
    torch.manual_seed(0)
    keeper = None
    if policy == "exact":

        def keeper(name, width, may_project):
            return Compressor(4, width, compile="false")

    if policy == "lean":
        coders = (RectifiedCoder(4, 8),) * (num_layers - 1)
        keeper = LeanRecipe(coders, 8, compile="false")
    shape = NetworkShape("sage", WIDTH, 8, CLASSES, num_layers, 0.0, batch_norm)
    if policy == "pyg":
        return PygNetwork(shape, Technique("eager")).train()
    return GraphNetwork(shape, keeper, compile="false").train()


POLICIES = ("full", "exact", "lean", "pyg")


def trained(model, x, adjacency=GRAPH.adjacency):
    x = x.clone().requires_grad_()
    seeds = torch.arange(model.num_seeds, dtype=torch.int32)
    logits = model(x, model.aggregation(adjacency), seeds)
    logits.square().sum().backward()
    return logits, x.grad, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", HALVES)
def test_networks_take_half_features_and_return_their_gradient(policy, dtype):
    x = GRAPH.features.to(dtype)
    logits, gradient, others = trained(network(policy), x)
    expected, of_x, of_others = trained(network(policy), x.float())
    assert gradient.dtype == dtype
    assert torch.equal(logits, expected)
    assert torch.equal(gradient, of_x.to(dtype))
    assert all(map(torch.equal, others, of_others))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", REFUSED)
def test_networks_refuse_other_features(policy, dtype):
    model = network(policy)
    on = model.aggregation(GRAPH.adjacency)
    seeds = torch.arange(model.num_seeds, dtype=torch.int32)
    with pytest.raises(TypeError, match=rf"x must be of type .* got {dtype}"):
        model(GRAPH.features.to(dtype), on, seeds)


@pytest.mark.parametrize("policy", ["full", "exact", "lean"])
def test_autocast_does_not_reach_into_a_network(policy):
    expected = trained(network(policy), GRAPH.features)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = trained(network(policy), GRAPH.features)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("policy", ["full", "exact", "lean"])
def test_parameters_and_seeds_of_other_types_are_refused(policy):
    model = network(policy)
    on = model.aggregation(GRAPH.adjacency)
    seeds = torch.arange(model.num_seeds)
    if policy != "full":
        with pytest.raises(TypeError, match=r"seed must be .*int32, got torch.int64"):
            model(GRAPH.features, on, seeds)
    with pytest.raises(TypeError, match=r"parameter conv.* torch.float32, got torch.b"):
        model.bfloat16()(GRAPH.features, on, seeds.int())


@pytest.mark.parametrize("policy", ["full", "exact", "lean"])
@pytest.mark.parametrize(
    "shape", [(0, WIDTH), (NODES, 0), (NODES, WIDTH + 1), (WIDTH,)]
)
def test_networks_refuse_features_of_another_shape(policy, shape):
    model = network(policy)
    with pytest.raises(ValueError, match=r"must be \(num_nodes, 6\) .* one node, got"):
        model(torch.zeros(shape), model.aggregation(GRAPH.adjacency))


def test_networks_without_width_are_refused():
    for widths in ((0, 8, 3), (6, 0, 3), (6, 8, 0)):
        with pytest.raises(ValueError, match="num_classes must be at least 1, got"):
            NetworkShape("sage", *widths, 2, 0.0, True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_one_node_without_batch_norm_is_a_graph(policy, num_layers):
    alone = adjacency_from_edges(*torch.zeros(2, 1, dtype=torch.int64).numpy(), 1)
    model = network(policy, num_layers, False)
    logits, gradient, _ = trained(model, GRAPH.features[:1], alone)
    plain, expected, _ = trained(
        network("full", num_layers, False), GRAPH.features[:1], alone
    )
    assert torch.allclose(logits, plain, rtol=1e-6, atol=2.0**-22)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=2.0**-20)


@pytest.mark.parametrize("model", ["gcn", "agnn", "gat"])
def test_feature_networks_keep_the_same_rule(model):
    torch.manual_seed(0)
    net = FeatureNetwork(model, WIDTH, CLASSES).eval()
    bits = uniform_bits(net.num_layers, 4)
    points = QuantizedPoints(bits)
    plan = MessagePlan.of(GRAPH.adjacency, bits, net.gathered_width)
    with torch.no_grad():
        for given in (None, points):
            for dtype in HALVES:
                x = GRAPH.features.to(dtype)
                assert torch.equal(net(x, plan, given), net(x.float(), plan, given))
            for dtype in REFUSED:
                with pytest.raises(TypeError, match=rf"x must be .* got {dtype}"):
                    net(GRAPH.features.to(dtype), plan, given)


@pytest.mark.parametrize("grad", [True, False])
def test_a_graph_without_nodes_has_no_messages(grad):
    none = torch.zeros(2, 0, dtype=torch.int64).numpy()
    plan = MessagePlan.of(adjacency_from_edges(*none, 0), None, WIDTH)
    store = FeatureStore.full(torch.zeros(0, WIDTH))
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match="at least one row, got an empty graph"),
    ):
        plan.by_rows(store, lambda rows: rows)
