"""The network as a whole: PyTorch's own operations against those that compress."""

import math
import statistics

import pytest
import torch
from torch_geometric.nn import GCNConv, SAGEConv

from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import Adjacency, adjacency_from_edges
from pipeline_src.quant.compressor import Compressor

GRAPH = synthetic_graph(
    num_nodes=120, num_edges=900, num_features=20, num_classes=5, seed=1
)


def keep_in(bits, ratio=1, block_size=None):
    def keep(name, width, may_project):
        size = block_size or width
        return Compressor(
            bits, size, ratio if may_project else 1, None, compile="false"
        )

    return keep


def network(layer, keep=None, num_layers=3, dropout=0.5, batch_norm=True, seed=0):
    torch.manual_seed(seed)
    shape = NetworkShape(
        layer,
        GRAPH.num_features,
        16,
        GRAPH.num_classes,
        num_layers,
        dropout,
        batch_norm,
    )
    return GraphNetwork(shape, keep, "false")


def gradients(model, seeds=None, dropout_seed=7, x=GRAPH.features):
    """Logits and the gradient of each parameter of one training step."""
    model.train()
    model.zero_grad(set_to_none=True)
    aggregation = model.aggregation(GRAPH.adjacency)
    torch.manual_seed(dropout_seed)
    logits = model(x, aggregation, seeds)
    selected = logits[GRAPH.train_index]
    labels = GRAPH.labels[GRAPH.train_index]
    torch.nn.functional.cross_entropy(selected, labels).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return logits.detach(), grads


def seeds_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    shape = (model.num_seeds,)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_32_bits_give_pytorchs_gradients_exactly(layer, batch_norm, num_layers):
    full = network(layer, None, num_layers, batch_norm=batch_norm)
    kept = network(layer, keep_in(32), num_layers, batch_norm=batch_norm)
    expected_logits, expected = gradients(full)
    logits, grads = gradients(kept, seeds_of(kept))
    assert torch.equal(logits, expected_logits)
    for name, gradient in expected.items():
        assert torch.equal(grads[name], gradient), name
    for (name, one), (_, other) in zip(
        full.named_buffers(), kept.named_buffers(), strict=False
    ):
        assert name == "finite" or torch.equal(one, other), name


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_forward_does_not_depend_on_what_is_kept(layer, bits):
    expected, _ = gradients(network(layer))
    model = network(layer, keep_in(bits, ratio=4))
    logits, _ = gradients(model, seeds_of(model))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("directed", [False, True])
def test_one_layer_agrees_with_pytorch_geometric(layer, directed):
    """Same weights, same output and gradients, to rounding.

    A float32 sum of n terms errs by at most n * 2**-24 of the sum of absolute terms;
    the longest sum runs over all 120 nodes, and values stay below 10.
    """
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(0, 120, (2, 700), generator=generator)
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    if not directed:
        edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    adjacency = adjacency_from_edges(
        edges[0].numpy(), edges[1].numpy(), 120, symmetrize=False
    )
    assert adjacency.symmetric is not directed
    model = network(layer, keep_in(32), num_layers=1)
    ours = model.convolutions[0]
    if layer == "sage":
        theirs = SAGEConv(20, 5)
        theirs.lin_l.weight.data.copy_(ours.neighbor.weight.data)
        theirs.lin_l.bias.data.copy_(ours.neighbor.bias.data)
        theirs.lin_r.weight.data.copy_(ours.root.weight.data)
        pairs = [
            (ours.neighbor.weight, theirs.lin_l.weight),
            (ours.neighbor.bias, theirs.lin_l.bias),
            (ours.root.weight, theirs.lin_r.weight),
        ]
    else:
        theirs = GCNConv(20, 5)
        theirs.lin.weight.data.copy_(ours.weight.data)
        theirs.bias.data.copy_(ours.bias.data)
        pairs = [(ours.weight, theirs.lin.weight), (ours.bias, theirs.bias)]
    x = torch.randn(120, 20, generator=generator, requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    weights = torch.randn(120, 5, generator=generator)
    output = model(x, model.aggregation(adjacency), seeds_of(model))
    expected = theirs(x_theirs, edges)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    bound = 120 * 2.0**-24 * 120 * 10
    assert torch.allclose(output, expected, rtol=0, atol=bound)
    assert torch.allclose(x.grad, x_theirs.grad, rtol=0, atol=bound)
    for one, other in pairs:
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_renaming_nodes_renames_the_outputs(layer):
    model = network(layer).eval()
    order = torch.randperm(GRAPH.num_nodes, generator=torch.Generator().manual_seed(2))
    place = order.argsort()
    rows = torch.arange(GRAPH.num_nodes).repeat_interleave(GRAPH.adjacency.degree)
    source = place[GRAPH.adjacency.column.long()]
    renamed = adjacency_from_edges(source.numpy(), place[rows].numpy(), 120)
    output = model(GRAPH.features, model.aggregation(GRAPH.adjacency))
    other = model(GRAPH.features[order], model.aggregation(renamed))
    # Sums over neighbours change their order: 3 layers, 120 terms, values below 10.
    assert torch.allclose(other, output[order], rtol=0, atol=3 * 120 * 2.0**-24 * 10)


def two_sided_bound(num_tests: int) -> float:
    """Standard errors that num_tests normal means all keep but once in a million."""
    return -statistics.NormalDist().inv_cdf(1e-6 / num_tests / 2)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize(("bits", "ratio"), [(1, 1), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_gradient_is_unbiased(layer, bits, ratio):
    """The mean over n draws lies within its standard error of the exact gradient.

    Without BatchNorm each gradient is linear in the activations that are kept, so it
    has no bias at all. The bound holds for every entry at once but for a chance of
    one in a million; the seeds are fixed.
    """
    n = 400
    _, expected = gradients(network(layer, batch_norm=False))
    model = network(layer, keep_in(bits, ratio), batch_norm=False)
    draws = [gradients(model, seeds_of(model, step))[1] for step in range(n)]
    bound = two_sided_bound(sum(g.numel() for g in expected.values()))
    for name, gradient in expected.items():
        sample = torch.stack([draw[name] for draw in draws]).double()
        error = (sample.mean(dim=0) - gradient).abs()
        # Plus rounding: float32 sums over 120 nodes of values below 1.
        standard_error = sample.std(dim=0) / math.sqrt(n)
        assert torch.all(error <= bound * standard_error + 120 * 2.0**-24), name


def test_batch_norms_own_gradients_are_unbiased_and_its_input_gradient_nearly():
    """Its weight and bias gradients are linear in the kept input, hence unbiased.

    The gradient of its input holds a product of the kept value with a mean over all
    nodes that contains it; with rounding variance v of a value that adds -v g / n,
    once, where n is the number of nodes: the bias of an entry, in units of the
    normalised input, is below v max|g| / n.
    """
    from pipeline_src.gnn.saved import BatchNormalization

    generator = torch.Generator().manual_seed(5)
    n, width, draws = 200, 8, 3000
    x = torch.randn(n, width, generator=generator)
    g = torch.randn(n, width, generator=generator)
    weight = torch.rand(width, generator=generator) + 0.5
    bias = torch.randn(width, generator=generator)

    def run(bits, seed):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        output = BatchNormalization.apply(
            *inputs,
            torch.zeros(width),
            torch.ones(width),
            True,
            0.1,
            1e-5,
            Compressor(bits, width, compile="false"),
            torch.tensor([seed], dtype=torch.int32),
            torch.ones(1, dtype=torch.bool),
        )
        output.backward(g)
        return [t.grad for t in inputs]

    exact = run(32, 0)
    samples = [run(2, seed) for seed in range(draws)]
    std = x.std(dim=0, unbiased=False)
    block_range = x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)
    # A bin is a third of the range, widened by at most 2**-6 in bfloat16.
    variance = (block_range / 3 * (1 + 2.0**-6)) ** 2 / 4 / std**2
    allowed = [weight / std * variance.max() * g.abs().max() / n, 0.0, 0.0]
    bound = two_sided_bound(n * width + 2 * width)
    for which, gradient in enumerate(exact):
        sample = torch.stack([one[which] for one in samples]).double()
        error = (sample.mean(dim=0) - gradient).abs()
        noise = bound * sample.std(dim=0) / math.sqrt(draws)
        assert torch.all(error <= noise + allowed[which] + n * 2.0**-22)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_only_packed_tensors_are_kept(layer):
    """What autograd holds after forward is the published layout, tensor by tensor."""
    model = network(layer, keep_in(2, ratio=4), num_layers=2)
    model.train()
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    )
    aggregation = model.aggregation(GRAPH.adjacency)
    with hooks:
        model(GRAPH.features, aggregation, seeds_of(model))
    parameters = {p.data_ptr() for p in model.parameters()}
    rest = [t for t in kept if t.data_ptr() not in parameters and t.numel() > 1]
    n = GRAPH.num_nodes
    # Rows of 20 / 4 = 5 or 16 / 4 = 4 projected values; blocks of 20 or 16 values.
    conv = {"sage": 2, "gcn": 1}[layer]
    packed = conv * [n * 5 // 4] + [n * 16 // 4] + conv * [n * 4 // 4]
    masks = [n * 16 // 8] * 2
    assert sorted(t.numel() for t in rest if t.dtype == torch.uint8) == sorted(
        packed + masks
    )
    metadata = conv * [n * 5 // 20] * 2 + [n] * 2 + conv * [n * 4 // 16] * 2
    assert sorted(t.numel() for t in rest if t.dtype == torch.bfloat16) == sorted(
        metadata
    )
    # BatchNorm's mean and inverse standard deviation.
    assert [t.numel() for t in rest if t.dtype == torch.float32] == [16, 16]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_name_the_activation(bad):
    model = network("sage", keep_in(2), num_layers=2)
    x = GRAPH.features.clone()
    gradients(model, seeds_of(model), x=x)
    model.check_finite()
    x[3, 4] = bad
    gradients(model, seeds_of(model), x=x)
    with pytest.raises(FloatingPointError, match=r"activations layer1\.input, layer1"):
        model.check_finite()


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_evaluation_is_the_same_function_as_training(layer):
    """One layer has neither BatchNorm nor Dropout; sums only change their order."""
    model = network(layer, num_layers=1)
    aggregation = model.aggregation(GRAPH.adjacency)
    trained = model.train()(GRAPH.features, aggregation)
    evaluated = model.eval()(GRAPH.features, aggregation)
    assert torch.allclose(trained, evaluated, rtol=0, atol=120 * 2.0**-24 * 10)


def test_evaluation_compresses_nothing():
    model = network("gcn", keep_in(1)).eval()
    expected = network("gcn").eval()
    aggregation = model.aggregation(GRAPH.adjacency)
    one, other = (m(GRAPH.features, aggregation) for m in (model, expected))
    assert torch.equal(one, other)


def test_seeds_decide_the_gradient_and_nothing_else():
    model = network("sage", keep_in(2, ratio=4))
    _, first = gradients(model, seeds_of(model, 0))
    _, again = gradients(network("sage", keep_in(2, ratio=4)), seeds_of(model, 0))
    _, other = gradients(network("sage", keep_in(2, ratio=4)), seeds_of(model, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["convolutions.0.root.weight"], other["convolutions.0.root.weight"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gat", 4, 4, 2, 2, 0.5, True), r"layer must be one of .* got 'gat'"),
        (("gcn", 4, 4, 2, 0, 0.5, True), "num_layers must be at least 1, got 0"),
    ],
)
def test_unknown_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NetworkShape(*arguments)


def test_missing_seeds_are_refused():
    model = network("sage", keep_in(2)).train()
    aggregation = model.aggregation(GRAPH.adjacency)
    with pytest.raises(ValueError, match=r"needs 8 seeds per step .* got None"):
        model(GRAPH.features, aggregation)
    assert isinstance(GRAPH.adjacency, Adjacency)
