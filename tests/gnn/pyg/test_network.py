"""PyTorch Geometric's networks: the same function as ours, however memory is saved."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.pyg import hooks
from pipeline_src.gnn.pyg import network as networks
from pipeline_src.gnn.pyg.hooks import (
    HOOK_BLOCK_SIZE,
    dequantize_saved,
    quantize_saved,
)
from pipeline_src.gnn.pyg.network import PygNetwork
from pipeline_src.gnn.pyg.technique import TECHNIQUES, Technique
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.training.job import Job
from pipeline_src.training.meters import allocated_bytes, measure_memory
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.step_memory import measure_saved_memory
from pipeline_src.training.trainer import Trainer

GRAPH = synthetic_graph(
    num_nodes=123, num_edges=900, num_features=20, num_classes=5, seed=1
)
LAYERS = ["sage", "gcn"]
CPU = torch.device("cpu")
EXACT = ["eager", "checkpointing", "offload"]  # without compilation
# Sums of up to 128 terms in another order, through 3 layers, forward.
EPSILON = 3 * 128 * 2.0**-24
HALF = 2.0**-8  # bfloat16 rounds by this share of a value at most
ROUNDINGS = 3 * 8  # per layer: inputs and weights, two products, sums, BatchNorm


def network(layer="sage", technique="eager", batch_norm=True, **changes):
    torch.manual_seed(0)
    shape = NetworkShape(layer, 20, 16, 5, 3, 0.5, batch_norm)
    return PygNetwork(shape, Technique(technique, **changes)).train()


def ours(layer="sage", batch_norm=True):
    torch.manual_seed(0)
    return GraphNetwork(NetworkShape(layer, 20, 16, 5, 3, 0.5, batch_norm)).train()


def loss_of(logits, graph=GRAPH):
    return functional.cross_entropy(
        logits[graph.train_index], graph.labels[graph.train_index]
    )


def gradients(model, adjacency=GRAPH.adjacency, graph=GRAPH):
    """Logits and gradients, under the same Dropout each time."""
    torch.manual_seed(3)
    logits = model(graph.features, model.aggregation(adjacency))
    loss_of(logits, graph).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters()}


def in_our_names(found):
    """PyTorch Geometric's names of parameters in ours."""
    pairs = (("lin_l", "neighbor"), ("lin_r", "root"), ("lin.", ""))
    renamed = {}
    for name, gradient in found.items():
        for theirs, name_of_ours in pairs:
            name = name.replace(theirs, name_of_ours)
        renamed[name] = gradient
    return renamed


def assert_close(found, expected, epsilon=EPSILON):
    """Logits by the largest; gradients by the norm of the longest."""
    (logits, grads), (expected_logits, expected_grads) = found, expected
    scale = expected_logits.abs().max()
    assert torch.all((logits - expected_logits).abs() <= epsilon * scale)
    assert grads.keys() == expected_grads.keys()
    longest = max(gradient.norm() for gradient in expected_grads.values())
    for name, gradient in expected_grads.items():
        # Backward passes each layer a second time.
        assert (grads[name] - gradient).norm() <= 2 * epsilon * longest, name


def directed():
    generator = torch.Generator().manual_seed(4)
    edges = torch.randint(0, 123, (2, 700), generator=generator)
    edges[1, :9] = edges[0, :9]  # loops, which GCN must not count twice
    return adjacency_from_edges(*edges.numpy(), 123, symmetrize=False)


# --- the same function ----------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("edges", ["symmetric", "directed"])
def test_it_is_our_network_with_the_same_parameters_and_masks(layer, batch_norm, edges):
    adjacency = GRAPH.adjacency if edges == "symmetric" else directed()
    expected = gradients(ours(layer, batch_norm), adjacency)
    logits, found = gradients(network(layer, batch_norm=batch_norm), adjacency)
    assert_close((logits, in_our_names(found)), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_right_where_int32_cannot_hold_the_square_of_the_nodes(layer):
    """torch.sparse.mm(..., reduce) transposes wrongly there if indices are int32."""
    graph = synthetic_graph(num_nodes=50_000, num_edges=100_000, num_features=4)
    shape = NetworkShape(layer, 4, 4, graph.num_classes, 2, 0.0, False)
    torch.manual_seed(0)
    theirs, ours = PygNetwork(shape, Technique("eager")), GraphNetwork(shape)
    theirs.copy_parameters(ours)
    logits, found = gradients(theirs, graph.adjacency, graph)
    expected = gradients(ours, graph.adjacency, graph)
    # Sums over all nodes.
    assert_close((logits, in_our_names(found)), expected, 50_000 * 2.0**-24)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("technique", ["checkpointing", "offload"])
def test_techniques_that_round_nothing_change_nothing(layer, technique):
    """Running statistics too: a block that runs twice counts its batch once."""
    expected, model = network(layer), network(layer, technique)
    found = gradients(model)
    assert_close(found, gradients(expected), 0.0)
    buffers = dict(expected.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("layer", LAYERS)
def test_autocast_rounds_like_bfloat16(layer):
    """Each of ROUNDINGS operations adds a share of HALF of the largest value."""
    expected = gradients(network(layer))
    found = gradients(network(layer, "autocast"))
    assert found[0].dtype == torch.float32
    assert_close(found, expected, ROUNDINGS * HALF)
    difference = (found[0] - expected[0]).abs().max()
    assert difference > 2**-12 * expected[0].abs().max()  # it did round


@pytest.fixture
def equal_masks():
    """Compiled Dropout draws what PyTorch draws; nothing compiled so is kept."""
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch(fallback_random=True):
        yield
    torch.compiler.reset()


def test_a_compiled_network_computes_the_same(equal_masks):
    model = network("sage", "compiled")
    found = gradients(model, directed())
    assert_close(found, gradients(network("sage"), directed()))


def test_a_budget_computes_the_same_again():
    """With the masks of the other techniques, whatever Inductor would draw."""
    model = network("gcn", "budget", memory_budget=0.0)
    found = gradients(model, directed())
    assert_close(found, gradients(network("gcn"), directed()))


@pytest.mark.parametrize(
    ("technique", "budget"), [("eager", 1.0), ("compiled", 1.0), ("budget", 0.0)]
)
def test_backward_knows_the_masks_of_forward(technique, budget):
    """Euler: w times its gradient is the output, for the weight w of any layer.

    Without biases and BatchNorm a network is linear in the length of w. With a mask
    that forward did not have it would be another number altogether.
    """
    model = network("gcn", technique, batch_norm=False, memory_budget=budget)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(123, 5, generator=generator)
    logits = model(GRAPH.features, model.aggregation(GRAPH.adjacency))
    terms = logits * direction
    terms.sum().backward()
    tolerance = 2 * EPSILON * terms.detach().abs().sum()
    for convolution in model.convolutions:
        weight = convolution.lin.weight
        assert ((weight * weight.grad).sum() - terms.sum()).abs() <= tolerance


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_evaluation_is_the_same_whatever_the_technique(layer, technique, monkeypatch):
    """Without hooks, without autocast and without compiling anything."""
    monkeypatch.setattr(networks, "compiled", None)
    monkeypatch.setattr(hooks, "saved_tensors_hooks", None)
    logits = []
    for model in (network(layer), network(layer, technique, bits=8)):
        model.eval()
        x = GRAPH.features.clone().requires_grad_()
        logits.append(model(x, model.aggregation(GRAPH.adjacency)).detach())
    expected, found = logits
    assert torch.all((found - expected).abs() <= EPSILON * expected.abs().max())


# --- hooks ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_saved_values_move_by_less_than_a_bin(bits):
    """A bin of a block of 256 values; bfloat16 widens it by 2**-7 of range, minimum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(123, 20, generator=generator) + 1.0
    kept = quantize_saved(x, bits, generator)
    assert kept.packed.numel() <= (x.numel() + 2 * HOOK_BLOCK_SIZE) * bits / 8
    padded = functional.pad(x.flatten(), (0, -x.numel() % HOOK_BLOCK_SIZE), value=1.0)
    blocks = padded.view(-1, HOOK_BLOCK_SIZE)
    width = blocks.amax(1) - blocks.amin(1) + 2**-7 * blocks.abs().amax(1)
    bin_width = (1 + 2**-7) * width / (2**bits - 1)
    error = (dequantize_saved(kept) - x).abs().flatten()
    bound = bin_width.repeat_interleave(HOOK_BLOCK_SIZE)[: x.numel()]
    assert torch.all(error <= bound * (1 + 2**-20))
    again = dequantize_saved(quantize_saved(x, bits, generator))
    assert not torch.equal(again, dequantize_saved(kept))  # rounded at random


def test_masks_and_small_tensors_come_back_as_they_were():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(123, 21, generator=generator) < 0.3
    kept = quantize_saved(mask, 4, generator)
    assert kept.packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(dequantize_saved(kept), mask)
    small = torch.rand(100, generator=generator)
    assert quantize_saved(small, 4, generator) is small


@pytest.mark.parametrize("layer", LAYERS)
def test_hooks_see_each_activation_once_and_nothing_resident(layer, monkeypatch):
    """Per hidden layer input of BatchNorm, ReLU's output, the output and its mask.

    SAGE adds the aggregated features of three layers, BatchNorm two statistics of 16.
    What is kept unharmed gives the gradients of eager.
    """
    packed = []

    def keep_all(tensor, bits, generator):
        packed.append(tensor.detach().clone())
        return packed[-1]  # BatchNorm also saves an empty tensor

    monkeypatch.setattr(networks, "quantize_saved", keep_all)
    found = gradients(network(layer, "quantized_hooks", bits=4))
    assert_close(found, gradients(network(layer)), 0.0)
    shapes = sorted((t.dtype == torch.bool, *t.shape) for t in packed if t.numel())
    aggregated = [(False, 123, 20), *[(False, 123, 16)] * 2] if layer == "sage" else []
    expected = [*[(False, 16)] * 4, *[(False, 123, 16)] * 6, *[(True, 123, 16)] * 2]
    assert shapes == sorted(expected + aggregated)


@pytest.mark.parametrize("layer", LAYERS)
def test_more_bits_of_hooks_give_better_gradients(layer):
    """A bin of 8 bits is 17 times finer; half of that must show in the mean of 20."""
    _, expected = gradients(network(layer))
    errors = {4: [], 8: []}
    for bits, found in errors.items():
        model = network(layer, "quantized_hooks", bits=bits)
        for _ in range(20):
            model.zero_grad(set_to_none=True)
            _, grads = gradients(model)
            squares = [(grads[n] - g).square().sum() for n, g in expected.items()]
            found.append(float(torch.stack(squares).sum().sqrt()))
    assert 0 < sum(errors[8]) <= sum(errors[4]) / (17 / 2)


# --- books ----------------------------------------------------------------------------


def run_spec(technique, bits=32, memory_budget=1.0, layer="sage"):
    method = MethodSpec(
        technique,
        technique,
        "pyg",
        bits,
        technique=technique,
        memory_budget=memory_budget,
    )
    model = ModelSpec(f"{layer}-3x16", layer, 3, 16, 0.5, True)
    plan = TrainingSpec(2, 0.01, 0.0, 0.5, "cross_entropy")
    return RunSpec("synthetic", model, method, plan, (0, 1), "cpu", "auto")


def saved(*method):
    trainer = Trainer(run_spec(*method), GRAPH, None, seed=0)
    trainer.step(0)
    return measure_saved_memory(trainer)[0]


def test_eager_keeps_what_its_operations_keep():
    """Two hidden layers of 16 features, tensor by tensor."""
    model = network()
    aggregation = model.aggregation(GRAPH.adjacency)

    def forward():
        return model(GRAPH.features, aggregation)

    forward()
    logits, use = measure_memory(forward, CPU)
    wide, value = allocated_bytes(4 * 123 * 16), allocated_bytes(4 * 16)
    per_layer = 3 * wide  # inputs of BatchNorm and of the next layer, ReLU's output
    per_layer += allocated_bytes(123 * 16) + 2 * value  # Dropout's mask, statistics
    aggregated = allocated_bytes(4 * 123 * 20) + 2 * wide
    assert use.held - allocated_bytes(logits.nbytes) == 2 * per_layer + aggregated


def test_techniques_keep_less_than_eager():
    eager = saved("eager")
    assert saved("checkpointing") < saved("autocast") < eager
    assert saved("quantized_hooks", 4) < saved("quantized_hooks", 8) < eager
    assert saved("offload") == eager  # on a CPU


def test_a_budget_binds_its_own_network_and_leaves_no_trace():
    from torch._functorch import config

    before = config.activation_memory_budget
    budget = saved("budget", 32, 0.3)
    assert config.activation_memory_budget == before
    assert budget < saved("compiled") < saved("eager")
    assert saved("budget", 32, 0.3) == budget


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_trains_and_repeats_itself(technique):
    spec = run_spec(technique, 8 if technique == "quantized_hooks" else 32)
    record = train_run(spec, Job(GRAPH))
    assert not any(variable.isnull().any() for variable in record.values())
    again = train_run(dataclasses.replace(spec, seeds=(1,)), Job(GRAPH))
    losses = record["loss_curve"].sel(seed=1).values
    assert (again["loss_curve"].sel(seed=1).values == losses).all()
    assert (losses != record["loss_curve"].sel(seed=0).values).all()


@pytest.mark.gpu
@pytest.mark.parametrize("layer", LAYERS)
def test_techniques_agree_on_a_gpu_and_offload_frees_it(layer, equal_masks):
    """TF32 is off unless asked for, so float32 rounding bounds the difference."""
    graph = GRAPH.to("cuda")
    results, held = {}, {}
    for technique in ("eager", "checkpointing", "offload", "compiled"):
        model = network(layer, technique).cuda()
        results[technique] = gradients(model, graph.adjacency, graph)
        assert_close(results[technique], results["eager"])
        aggregation = model.aggregation(graph.adjacency)
        _, use = measure_memory(
            lambda m=model, a=aggregation: m(graph.features, a), torch.device("cuda")
        )
        held[technique] = use.held
    assert held["offload"] < held["checkpointing"] < held["eager"]


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"technique": "magic"}, r"technique must be one of .* got 'magic'"),
        ({"technique": "quantized_hooks"}, r"needs bits in \(4, 8\), got 32"),
        ({"layer": "gat"}, r"layer must be one of .* got 'gat'"),
    ],
)
def test_unknown_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


@pytest.mark.parametrize("technique", ["compiled", "budget"])
def test_nothing_that_is_not_compiled_is_called_so(technique):
    spec = dataclasses.replace(run_spec(technique), compile="false")
    with pytest.raises(ValueError, match=r"is torch.compile itself.*compile: auto"):
        Trainer(spec, GRAPH, None, seed=0)


def test_it_asks_for_no_seeds_and_reports_no_activations():
    model = network()
    assert (model.num_seeds, model.activation_names) == (0, [])
    model.check_finite()
