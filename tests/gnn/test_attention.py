"""GCN, AGNN, GAT: torch_geometric's layers, dense oracles, and packed = tuned."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch_geometric.nn import AGNNConv, GATConv, GCNConv

from pipeline_src.gnn.attention import GatConvolution
from pipeline_src.gnn.feature_bits import (
    feature_bits,
    input_elements,
    nominal_bits,
    uniform_bits,
)
from pipeline_src.gnn.feature_network import (
    MODELS,
    PUBLISHED,
    FeatureNetwork,
    Hyperparameters,
)
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import (
    ATTENTION_RANGES,
    QuantizedPoints,
    StraightThrough,
)
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.feature_store import RANGES, RowPacking
from pipeline_src.training.meters import measure_memory

GRAPH = synthetic_graph(
    num_nodes=120, num_edges=900, num_features=20, num_classes=5, seed=1
)
# The longest sums of a layer: over features or channels, and over neighbours.
TERMS = 20 + int(GRAPH.adjacency.degree.max()) + 1
NUM_EDGES = GRAPH.adjacency.num_entries + GRAPH.num_nodes
PLAIN = RowPacking(compile="false")


def network(model, seed=0):
    torch.manual_seed(seed)
    net = FeatureNetwork(model, GRAPH.num_features, GRAPH.num_classes).eval()
    with torch.no_grad():  # biases and beta that a mistake would show
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "beta")) and parameter.requires_grad:
                parameter.uniform_(-0.5, 0.5)
    return net


def plan_of(net, bits=None, run_values=2**10):
    """Small runs: dozens of them, also of single receivers."""
    return MessagePlan.of(GRAPH.adjacency, bits, net.gathered_width, run_values)


def edge_index():
    receiver = torch.arange(GRAPH.num_nodes).repeat_interleave(GRAPH.adjacency.degree)
    return torch.stack([GRAPH.adjacency.column.long(), receiver])


def copy_parameters(ours, theirs):
    """Make the parameters of two layers equal, and pair them."""
    if isinstance(theirs, AGNNConv):
        pairs = [(ours.beta, theirs.beta)] if ours.beta.requires_grad else []
    else:
        pairs = [(ours.weight, theirs.lin.weight), (ours.bias, theirs.bias)]
    if isinstance(theirs, GATConv):
        pairs += [(ours.sender, theirs.att_src), (ours.receiver, theirs.att_dst)]
    with torch.no_grad():
        for one, other in pairs:
            other.copy_(one)
    return pairs


def rival(net, model):
    """The same network of torch_geometric's layers, and parameters in pairs."""
    edges, layers = edge_index(), net.layers
    if model == "agnn":
        first, second = AGNNConv(requires_grad=False), AGNNConv().double()

        def agnn(x):
            x = torch.relu(functional.linear(x, layers[0].weight, layers[0].bias))
            x = second(first(x, edges), edges)
            return functional.linear(x, layers[3].weight, layers[3].bias)

        return agnn, copy_parameters(layers[2], second)
    if model == "gcn":
        first, second, nonlinearity = GCNConv(20, 16), GCNConv(16, 5), torch.relu
    else:
        first = GATConv(20, 8, heads=8).double()
        second, nonlinearity = GATConv(64, 5).double(), functional.elu
    pairs = copy_parameters(layers[0], first) + copy_parameters(layers[1], second)
    return lambda x: second(nonlinearity(first(x, edges)), edges), pairs


@pytest.mark.parametrize("model", MODELS)
def test_full_precision_agrees_with_torch_geometric(model):
    """Logits and gradients of features, to rounding: GCN's weights are float32."""
    net = network(model)
    unit = 2.0**-24
    features = GRAPH.features
    if model != "gcn":
        net, unit, features = net.double(), 2.0**-53, features.double()
    theirs, pairs = rival(net, model)
    x = features.clone().requires_grad_()
    y = features.clone().requires_grad_()
    output, expected = net(x, plan_of(net)), theirs(y)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    # Four layers at most, each of three sums (product, scores, neighbours); logits
    # and gradients are sums of values below 10.
    bound = 4 * 3 * TERMS * unit * 10
    assert (output - expected).abs().max() <= bound
    assert (x.grad - y.grad).abs().max() <= bound
    for one, other in pairs:  # their gradients sum over all edges as well
        assert (one.grad - other.grad).abs().max() <= bound * NUM_EDGES


def tables(num_layers):
    """Uniform widths, and a mixture over layers, components and buckets."""
    yield from (uniform_bits(num_layers, bits) for bits in (1, 4, 8))
    yield feature_bits(
        num_layers,
        lambda layer, component, bucket: (
            (32, 8, 2)[bucket]
            if component == "combination"
            else (4, 16, 32)[(layer + bucket) % 3]
        ),
        (6, 9),
    )


@pytest.mark.parametrize("attention_range", ATTENTION_RANGES)
@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("model", MODELS)
def test_tuned_forward_equals_packed_forward_to_the_bit(model, range, attention_range):
    net = network(model)
    recipe = RowPacking(range, rows_per_block=3, compile="false")
    for bits in tables(net.num_layers):
        plan = plan_of(net, bits)
        points = QuantizedPoints(bits, recipe, attention_range=attention_range)
        store = net.pack_input(GRAPH.features, plan, points)
        with torch.no_grad():
            packed = net(store, plan, points)
            from_floats = net(GRAPH.features, plan, points)
        tuned = net(store, plan, replace(points, straight_through=True))
        assert torch.equal(tuned.detach(), packed)
        assert torch.equal(from_floats, packed)
        assert tuned.requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_tuned_forward_equals_packed_forward_on_a_gpu(model):
    """Compiled kernels in both; the order of every sum is fixed."""
    net, graph = network(model).to("cuda"), GRAPH.to("cuda")
    for bits in tables(net.num_layers):
        plan = MessagePlan.of(graph.adjacency, bits, net.gathered_width, 2**12)
        points = QuantizedPoints(bits)
        store = net.pack_input(graph.features, plan, points)
        with torch.no_grad():
            packed = net(store, plan, points)
        tuned = net(store, plan, replace(points, straight_through=True))
        assert torch.equal(tuned.detach(), packed)


@pytest.mark.parametrize("model", MODELS)
def test_32_bits_are_full_precision_and_its_gradients_exactly(model):
    bits = uniform_bits(network(model).num_layers, 32)
    points = QuantizedPoints(bits, PLAIN)
    results = []
    for given in (None, points, replace(points, straight_through=True)):
        net = network(model)
        with torch.set_grad_enabled(given is not points):
            logits = net(GRAPH.features, plan_of(net), given)
        if given is not points:
            logits.square().sum().backward()
            gradients = [p.grad for p in net.parameters() if p.requires_grad]
            results.append((logits, gradients))
        else:
            packed = logits
    (full, expected), (tuned, gradients) = results
    assert torch.equal(packed, full)
    assert torch.equal(tuned, full)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("range", RANGES)
def test_straight_through_gradient_is_the_identity(range):
    """Inside every range, and where the released rule clips."""
    x = GRAPH.features.clone().requires_grad_()
    points = QuantizedPoints(
        uniform_bits(1, 2), RowPacking(range, 3, compile="false"), straight_through=True
    )
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    decoded = points.store(x, 0, "combination", None).decode()
    assert not torch.equal(decoded, x)
    decoded.backward(gradient)
    assert torch.equal(x.grad, gradient)


class Listening(QuantizedPoints):
    """Points that remember what was stored and what consumers will read."""

    def store(self, x, layer, component, groups):
        kept = super().store(x, layer, component, groups)
        STORED[layer, component] = x.detach().double(), kept.decode().detach().double()
        return kept


STORED = {}


def test_tuning_gradients_are_those_at_the_decoded_values():
    """The last product of AGNN reads decoded rows: its weights' gradient shows it."""
    net = network("agnn")
    bits = uniform_bits(net.num_layers, 2)
    points = Listening(bits, PLAIN, straight_through=True)
    logits = net(GRAPH.features, plan_of(net), points)
    logits.retain_grad()
    logits.square().sum().backward()
    floats, decoded = STORED[3, "combination"]
    gradient = logits.grad.double().T
    error = net.layers[3].weight.grad.double() - gradient @ decoded
    # Sums over nodes, in another order; products below their largest.
    largest = (gradient.abs() @ decoded.abs()).max()
    assert error.abs().max() <= GRAPH.num_nodes * 2.0**-24 * largest
    assert (gradient @ (decoded - floats)).abs().max() > 0.01 * largest


@pytest.mark.parametrize("model", ["agnn", "gat"])
def test_attention_of_each_receiver_sums_to_one_before_it_is_quantised(
    model, monkeypatch
):
    net = network(model)
    seen = 0

    def listen(self, values, run, layer, shared_range):
        nonlocal seen
        seen += values.shape[0]
        total = torch.zeros(len(run.receivers), values.shape[1])
        total.index_add_(0, run.owner, values)
        # A sum of n shares, each rounded, and PyG's 1e-16 in the denominator.
        assert (total - 1).abs().max() <= 3 * TERMS * 2.0**-24
        assert values.min() >= 0
        return values

    monkeypatch.setattr(QuantizedPoints, "attention", listen)
    points = QuantizedPoints(uniform_bits(net.num_layers, 8), PLAIN)
    with torch.no_grad():
        net(GRAPH.features, plan_of(net), points)
    assert seen == 2 * NUM_EDGES


def test_packed_gcn_is_the_dense_formula_on_decoded_features():
    """Oracle in float64: decode, multiply, decode, average."""
    net, bits = network("gcn"), uniform_bits(2, 4)
    matrix = torch.eye(120, dtype=torch.float64)
    senders, receivers = edge_index()
    matrix[receivers, senders] = 1
    root = matrix.sum(dim=1).rsqrt()
    matrix = root[:, None] * matrix * root
    with torch.no_grad():
        logits = net(GRAPH.features, plan_of(net), Listening(bits, PLAIN))
        outputs = []
        for i, layer in enumerate(net.layers):
            _, read = STORED[i, "combination"]
            product, gathered = STORED[i, "attention"]
            bound = 3 * TERMS * 2.0**-24 * 10  # values below 10
            assert (read @ layer.weight.double().T - product).abs().max() <= bound
            outputs.append(matrix @ gathered + layer.bias)
        hidden, _ = STORED[1, "combination"]
        assert (torch.relu(outputs[0]) - hidden).abs().max() <= bound
        assert (outputs[1] - logits).abs().max() <= bound


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bits", [1, 8])
def test_recorded_bytes_are_those_of_the_formula(model, bits):
    """Whole bytes per row and 8 per range; attention whole bytes per run and head."""
    net = network(model)
    table = uniform_bits(net.num_layers, bits, least_attention=bits)
    found = {}

    def record(name, nbytes):
        found[name] = found.get(name, 0) + nbytes

    plan = plan_of(net, run_values=2**20)  # one run
    points = QuantizedPoints(table, PLAIN, record=record)
    with torch.no_grad():
        net(GRAPH.features, plan, points)
    expected = {}
    for i, (of_attention, of_combination) in enumerate(net.elements()):
        rows = {"attention": of_attention, "combination": of_combination}
        for component, count in rows.items():
            if count.per_node:
                words = -(-count.per_node * bits // 8)
                expected[f"layer{i + 1}.{component}"] = 120 * (words + 8)
            if count.per_edge:
                words = -(-NUM_EDGES * bits // 8)
                expected[f"layer{i + 1}.attention values"] = count.per_edge * (
                    words + 120 * 8
                )
    assert found == expected


def test_packed_inference_never_holds_the_input_as_floats():
    """Peak: a few runs, and products of 16 columns; the input has 600."""
    graph = synthetic_graph(num_nodes=1500, num_edges=6000, num_features=600)
    net = FeatureNetwork("gcn", 600, graph.num_classes).eval()
    run_values = 2**14
    plan = MessagePlan.of(graph.adjacency, None, net.gathered_width, run_values)
    points = QuantizedPoints(uniform_bits(2, 1), PLAIN)
    store = net.pack_input(graph.features, plan, points)

    @torch.no_grad()
    def infer():
        return net(store, plan, points)

    infer()
    _, memory = measure_memory(infer, torch.device("cpu"))
    # Reading a run plainly makes at most 8 tensors of 4 bytes a value; of width 16
    # there are a product, its codes before packing, and an output of two passes.
    whole = 4 * 1500 * 16
    assert memory.peak <= 8 * 4 * run_values + 6 * whole
    assert memory.peak < graph.features.nbytes / 3


def test_published_hyperparameters_and_stored_elements():
    """Cora: widths and decay of the scripts; node-only counts of the reference."""
    degree = torch.zeros(2708, dtype=torch.int32)
    for model, widths in (
        ("gcn", (1433, 16)),
        ("agnn", (1433, 16, 16, 16)),
        ("gat", (1433, 64)),
    ):
        net = FeatureNetwork(model, 1433, 7)
        inputs = tuple(combination.per_node for _, combination in net.elements())
        assert inputs == widths
        bits = uniform_bits(net.num_layers, 32)
        node_only = nominal_bits(bits, input_elements(inputs), degree)
        assert node_only == 32 * 2708 * sum(widths)
        decays = [group["weight_decay"] for group in net.parameter_groups()]
        later = 0.0 if model == "gcn" else 5e-4
        assert decays == [5e-4] + [later] * (net.num_layers - 1)
    assert not FeatureNetwork("agnn", 4, 2).layers[1].beta.requires_grad
    assert FeatureNetwork("agnn", 4, 2).layers[2].beta.requires_grad
    assert PUBLISHED["gat"] == Hyperparameters(8, 8, 0.6, 0.005, 5e-4, False, 200)


def test_dropout_acts_in_training_only():
    net = network("gat")
    plan = plan_of(net)
    once, again = net(GRAPH.features, plan), net(GRAPH.features, plan)
    assert torch.equal(once, again)
    net.train()
    assert not torch.equal(net(GRAPH.features, plan), net(GRAPH.features, plan))


def test_wrong_wishes_are_refused():
    with pytest.raises(ValueError, match=r"model must be one of .* got 'sage'"):
        FeatureNetwork("sage", 3, 2)
    with pytest.raises(ValueError, match="attention_range must be one of"):
        QuantizedPoints(uniform_bits(2, 8), attention_range="edge")
    net = network("gcn")
    with pytest.raises(ValueError, match="a table of 2 layers, got 3"):
        net(GRAPH.features, plan_of(net), QuantizedPoints(uniform_bits(3, 8)))


def test_gradient_passes_through_any_rounding():
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    StraightThrough.apply(x, torch.sign).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_heads_lie_side_by_side():
    layer = GatConvolution(5, heads=2, channels=3)
    assert layer.weight.shape == (6, 5)
