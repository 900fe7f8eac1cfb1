"""The lean network: its arithmetic against autograd, its noise, its books."""

import math
import statistics
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipeline_src.configuration.checks import read_schema
from pipeline_src.gnn.lean import recipe
from pipeline_src.gnn.lean.recipe import IDEAS, LeanRecipe
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.quant.noise import row_keys, uniform_pair
from pipeline_src.training.meters import allocated_bytes, measure_memory
from pipeline_src.training.networks import keeper_of
from pipeline_src.training.spec import MethodSpec

ROOT = Path(__file__).resolve().parents[2]
GRAPH = synthetic_graph(
    num_nodes=123, num_edges=900, num_features=20, num_classes=5, seed=1
)
LAYERS = ["sage", "gcn"]
COPYING = ("transposed_aggregation", "resident_input", "rebuilt_input")


def lean(bits=2, **settings):
    return MethodSpec("lean", "lean", "lean", bits, rows_per_block=8, **settings)


def solved(bits, block_size):
    """Some boundaries that are not even, for two bits."""
    return (0.0, 1.1, 1.9, 3.0)


def network(layer, method=None, dropout=0.5, batch_norm=True, num_layers=3):
    """BatchNorm weights of both signs and one 0, so that no sign is special."""
    torch.manual_seed(0)
    method = method or lean()
    shape = NetworkShape(layer, 20, 16, 5, num_layers, dropout, batch_norm)
    recipe = keeper_of(method, shape, solved, "false", torch.device("cpu"))
    model = GraphNetwork(shape, recipe).train()
    with torch.no_grad():
        for norm in model.norms:
            norm.weight.normal_()
            norm.bias.normal_()
            norm.weight[3] = 0.0
    return model


def seeds_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    shape = (model.num_seeds,)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def loss_of(logits):
    labels = GRAPH.labels[GRAPH.train_index]
    return functional.cross_entropy(logits[GRAPH.train_index], labels)


def gradients(model, seeds, adjacency=GRAPH.adjacency):
    model.zero_grad(set_to_none=True)
    logits = model(GRAPH.features, model.aggregation(adjacency), seeds)
    loss_of(logits).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def autograd_gradients(model, seeds, adjacency=GRAPH.adjacency):
    """The same network with PyTorch's operations and the masks of these seeds."""
    model.zero_grad(set_to_none=True)
    aggregation = model.aggregation(adjacency)
    x = GRAPH.features
    for i, convolution in enumerate(model.convolutions):
        x = convolution.plain(x, aggregation)
        if i == len(model.convolutions) - 1:
            break
        if len(model.norms):
            norm = model.norms[i]
            x = functional.batch_norm(x, None, None, norm.weight, norm.bias, True)
        name = f"layer{i + 1}.codes"
        seed = seeds[model.activation_names.index(name)]
        keys = row_keys(seed, len(x))[:, None]
        columns = torch.arange(x.shape[1], dtype=torch.int32)
        survives = uniform_pair(keys, columns)[1] >= model.dropout
        x = torch.relu(x) * survives / (1 - model.dropout)
    loss_of(x).backward()
    return x.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def compare_with_autograd(model, adjacency=GRAPH.adjacency):
    """Equal to float32 rounding: sums of up to 128 terms through up to 3 layers.

    Compared by the norm of all gradients of a parameter, which for a bias in front
    of BatchNorm is 0 in exact arithmetic: hence the part that does not scale.
    """
    seeds = seeds_of(model)
    logits, found = gradients(model, seeds, adjacency)
    expected_logits, expected = autograd_gradients(model, seeds, adjacency)
    epsilon = 3 * 128 * 2.0**-24
    scale = expected_logits.abs().max()
    assert torch.all((logits - expected_logits).abs() <= epsilon * scale)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= epsilon * largest, name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("directed", [False, True])
def test_with_32_bits_gradients_are_autograds(layer, batch_norm, num_layers, directed):
    adjacency = GRAPH.adjacency
    if directed:
        edges = torch.randint(
            0, 123, (2, 700), generator=torch.Generator().manual_seed(4)
        )
        adjacency = adjacency_from_edges(*edges.numpy(), 123, symmetrize=False)
        assert not adjacency.symmetric
    method = lean(bits=32)
    model = network(layer, method, batch_norm=batch_norm, num_layers=num_layers)
    compare_with_autograd(model, adjacency)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("idea", IDEAS)
def test_with_32_bits_and_without_an_idea_gradients_are_autograds(layer, idea):
    compare_with_autograd(network(layer, lean(bits=32, without=(idea,))))


def test_with_32_bits_and_without_any_idea_gradients_are_autograds():
    compare_with_autograd(network("sage", lean(bits=32, without=IDEAS)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_runs_of_rows_do_not_change_gradients(bits, monkeypatch):
    """Only the order of sums, of at most 128 terms through 3 layers."""
    whole = network("sage", lean(bits, without=("chunked_backward",)))
    expected = gradients(whole, seeds_of(whole))[1]
    monkeypatch.setattr(recipe, "RUN_VALUES", 16 * 16)
    found = gradients(network("sage", lean(bits)), seeds_of(whole))[1]
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 3 * 128 * 2.0**-24 * largest, name


@pytest.mark.parametrize("layer", LAYERS)
def test_running_statistics_are_batch_norms(layer):
    model = network(layer)
    other = GraphNetwork(NetworkShape(layer, 20, 16, 5, 3, 0.5, True)).train()
    other.load_state_dict(model.state_dict())
    model(GRAPH.features, model.aggregation(GRAPH.adjacency), seeds_of(model))
    torch.manual_seed(9)
    other(GRAPH.features, other.aggregation(GRAPH.adjacency))
    # The first layer alone sees no Dropout, so that both have the same input.
    for name, buffer in other.norms[0].named_buffers():
        same = dict(model.norms[0].named_buffers())[name]
        assert torch.allclose(same, buffer, rtol=128 * 2.0**-24, atol=2.0**-22), name


METHODS = {
    "INT2": lean(2),
    "INT4": lean(4),
    "INT4 and INT2": lean(layer_bits=(4, 2)),
    "INT8": lean(8),
    "solved": lean(2, boundaries="clipped_normal", without=("sided_codes",)),
    **{f"without {idea}": lean(2, without=(idea,)) for idea in IDEAS},
    "projected copies": lean(2, projection_ratio=2, without=COPYING),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradient_is_unbiased_without_batch_norm(layer, method):
    """Mean over n draws within the standard error, for all entries at once."""
    n = 120
    model = network(layer, method, dropout=0.0, batch_norm=False)
    _, expected = autograd_gradients(model, seeds_of(model))
    draws = [gradients(model, seeds_of(model, step))[1] for step in range(n)]
    entries = sum(gradient.numel() for gradient in expected.values())
    bound = -statistics.NormalDist().inv_cdf(1e-6 / entries / 2)
    for name, gradient in expected.items():
        sample = torch.stack([draw[name] for draw in draws]).double()
        error = (sample.mean(dim=0) - gradient).abs()
        noise = bound * sample.std(dim=0) / math.sqrt(n)
        assert torch.all(error <= noise + 123 * 2.0**-22), name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("idea", [None, *IDEAS])
def test_masks_are_exact(layer, bits, idea):
    """With one hidden layer and no BatchNorm the first layer sees nothing but masks.

    Its bias then has the exact gradient, and its weights too where x is not a copy.
    """
    method = lean(bits, without=(idea,) if idea else ())
    model = network(layer, method, dropout=0.3, batch_norm=False, num_layers=2)
    seeds = seeds_of(model)
    _, expected = autograd_gradients(model, seeds)
    _, found = gradients(model, seeds)
    for name, gradient in expected.items():
        copied = idea in COPYING and "bias" not in name
        if name.startswith("convolutions.0") and not copied:
            bound = 128 * 2.0**-24 * max(1.0, gradient.abs().max().item())
            assert torch.allclose(found[name], gradient, rtol=0, atol=bound), name


def packed(rows, width, bits):
    return allocated_bytes(rows * width * bits // 8)


def codes_of(rows, width, bits):
    """Codes and the two ends of each block of 8 rows; with one bit, side means."""
    means = allocated_bytes(2 * 4 * width) if bits == 1 else 0
    ends = allocated_bytes(4 * rows // 8) if bits > 1 else 0
    return packed(rows, width, bits) + ends + means


def copy_of(rows, width, bits):
    """Codes, zero points and scales of blocks of 8 rows; the last may be padding."""
    blocks = math.ceil(rows / 8)
    return packed(8 * blocks, width, bits) + 2 * allocated_bytes(2 * blocks)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("idea", [None, *IDEAS])
def test_books_hold_codes_and_what_ideas_spare(layer, bits, idea):
    """Three layers of 20, 16 and 16 inputs; 123 nodes are 16 blocks of 8 rows."""
    model = network(layer, lean(bits, without=(idea,) if idea else ()))
    aggregation = model.aggregation(GRAPH.adjacency)
    seeds = seeds_of(model)

    def forward():
        return model(GRAPH.features, aggregation, seeds)

    forward()
    logits, use = measure_memory(forward, torch.device("cpu"))
    kept = use.held - allocated_bytes(logits.nbytes)

    statistics_of_norm = 2 * allocated_bytes(4 * 16)  # mean, inverse deviation
    hidden = codes_of(128, 16, bits) + statistics_of_norm
    scalars = 0  # seeds of copies: one per run
    expected = 2 * hidden
    if idea == "sided_codes":
        masked = copy_of(128, 16, bits) + allocated_bytes(128 * 16 // 8)
        expected = 2 * (masked + statistics_of_norm)
        scalars = 2
    elif idea == "regenerated_dropout":
        expected += 2 * allocated_bytes(128 * 16 // 8)
    elif idea == "resident_input":
        expected += copy_of(123, 20, bits)
        scalars = 1
    elif idea == "rebuilt_input":
        expected += 2 * copy_of(123, 16, bits)
        scalars = 2
    elif idea == "transposed_aggregation" and layer == "sage":
        expected += copy_of(123, 20, bits) + 2 * copy_of(123, 16, bits)
        scalars = 3
    assert kept == expected + scalars * allocated_bytes(4)


def test_without_must_name_ideas():
    with pytest.raises(ValueError, match=r"ideas of .* got \['magic'\]"):
        LeanRecipe((), 8, without=frozenset({"magic"}))


def test_one_bit_warns_of_its_bias_once():
    recipe._warn_of_bias.cache_clear()
    with pytest.warns(UserWarning, match="1 bit has biased gradients.* Take 2 bits"):
        network("sage", lean(layer_bits=(2, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network("sage", lean(1))
        recipe._warn_of_bias.cache_clear()
        network("sage", lean(2))


def test_schema_names_the_same_ideas():
    schema = read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    without = schema["$defs"]["method"]["properties"]["without"]
    assert tuple(without["items"]["enum"]) == IDEAS


def test_the_gradient_that_comes_in_is_left_alone():
    """Also where it has the size of a hidden layer's, and no row is padding."""
    graph = synthetic_graph(num_nodes=128, num_edges=900, num_features=20)
    torch.manual_seed(0)
    recipe = network("sage", num_layers=2).lean
    model = GraphNetwork(
        NetworkShape("sage", 20, 16, 16, 2, 0.0, False), recipe
    ).train()
    logits = model(graph.features, model.aggregation(graph.adjacency), seeds_of(model))
    incoming = torch.randn_like(logits)
    before = incoming.clone()
    logits.backward(incoming)
    assert torch.equal(incoming, before)


def test_second_backward_is_refused():
    model = network("sage")
    logits = model(GRAPH.features, model.aggregation(GRAPH.adjacency), seeds_of(model))
    loss = loss_of(logits)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can run only once"):
        loss.backward()


def test_values_that_are_not_finite_name_the_layer():
    model = network("sage")
    x = GRAPH.features.clone()
    x[5, 2] = math.nan
    model(x, model.aggregation(GRAPH.adjacency), seeds_of(model))
    with pytest.raises(FloatingPointError, match=r"activations layer1\.codes, layer2"):
        model.check_finite()
