"""torch.compile with codes: values, gradients, and the bytes that cross."""

import math
import warnings

import pytest
import torch
from torch import nn

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from pipeline_src.compression.joint import rewriting
from pipeline_src.compression.joint.backend import compressed_backend
from pipeline_src.compression.joint.dependence import (
    Verdict,
    behind_gradients,
    dependence,
)

NUM_NODES, WIDTH = 512, 16
DRAWS = 64
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def one_thread():
    """Threads add to a node in the order they come, in any compiled model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Sage(nn.Module):
    """Two layers: sums over edges, and maps of nodes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x, edges):
        def mean(x):
            return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) / 4

        x = torch.relu(self.norm(self.first(x + mean(x))))
        x = nn.functional.dropout(x, 0.5, self.training)
        return self.second(x + mean(x))


def built(backend, kind=Sage):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = kind()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    return model, compiled


def given():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_NODES, WIDTH, generator=generator)
    edges = torch.randint(0, NUM_NODES, (2, 2000), generator=generator)
    return x, edges


def step(model, compiled, *inputs):
    model.zero_grad()
    torch.manual_seed(1)
    output = compiled(*inputs)
    output.square().mean().backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_forward_is_equal_to_the_bit_and_eight_bits_are_close():
    model, compiled = built("inductor")
    output, exact = step(model, compiled, *given())
    statistics = model.norm.running_var.clone()
    backend = compressed_backend(CompressionConfig(bits=8))
    model, compiled = built(backend)
    found, gradient = step(model, compiled, *given())
    assert torch.equal(found, output)
    assert torch.equal(model.norm.running_var, statistics)
    # A code errs by a bin at most: 1/255 of a block's range, which is below 8 standard
    # deviations here; sums over nodes only make it smaller beside the gradient.
    assert (gradient - exact).norm() < 8 / 255 * exact.norm()
    kinds = {note.kept for note in backend.notes}
    assert {"by reference", "bits", "codes of 8 bits"} <= kinds


def test_bytes_that_cross_are_those_of_the_notes():
    backend = compressed_backend(CompressionConfig(bits=2))
    model, compiled = built(backend)
    step(model, compiled, *given())
    x, edges = given()
    output = compiled(x, edges)
    there = [x, edges, *model.parameters(), *model.buffers()]
    known = {one.untyped_storage().data_ptr() for one in there}
    kept = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in output.grad_fn.saved_tensors
    }
    crossing = sum(note.nbytes for note in backend.notes)
    big = [note for note in backend.notes if math.prod(note.shape) >= NUM_NODES * WIDTH]
    assert big
    assert not any(note.kept == "as it is" for note in big)
    assert sum(kept[one] for one in kept.keys() - known) == crossing


def bias(kind):
    """The largest error of a mean over draws, and what noise and rounding allow there.

    Six standard errors of 63 degrees of freedom: once in ten million per value.
    """
    x, _ = given()
    _, exact = step(*built("inductor", kind), x)
    model, compiled = built(compressed_backend(CompressionConfig(bits=2)), kind)
    found = torch.stack([step(model, compiled, x)[1] for _ in range(DRAWS)])
    spread = found.std(dim=0) / DRAWS**0.5
    assert spread.max() > 0, "nothing was rounded"
    roundings = 2.0**-20 * exact.abs().max()  # sums in another order
    excess = (found.mean(dim=0) - exact).abs() - 6 * spread
    return float(excess.max()), float(roundings)


def mapped():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 4))


def shared_out():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Softmax(1))


def test_gradients_at_two_bits_are_right_in_the_mean():
    excess, roundings = bias(mapped)
    assert excess <= roundings


def test_what_is_read_twice_row_by_row_is_kept_as_it_is():
    backend = compressed_backend(CompressionConfig(bits=2))
    _, compiled = built(backend, shared_out)
    compiled(given()[0])[:, 0].sum().backward()
    # Backward asks for the output, or for what it is made of.
    assert {note.kept for note in backend.notes} == {"by reference", "as it is"}
    assert "" not in {n.reason for n in backend.notes if n.kept == "as it is"}


def test_codes_of_what_is_read_twice_would_be_seen(monkeypatch):
    """A planted fault: whatever backward reads is taken to be affine."""

    def anything(kept, gradients, linear=()):
        return Verdict("")

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = shared_out(), nn.Linear(8, 4)

        def forward(self, x):
            return self.last(self.first(x) * 3)

    monkeypatch.setattr(rewriting, "dependence", anything)
    excess, roundings = bias(Inside)
    assert excess > roundings


def verdict(after):
    """Of a backward that multiplies what is kept by a gradient, and goes on."""
    graph = torch.fx.Graph()
    kept, gradient = graph.placeholder("kept"), graph.placeholder("gradient")
    product = graph.call_function(aten.mul.Tensor, (gradient, kept))
    graph.output(after(graph, product, kept))
    inputs = [torch.zeros(NUM_NODES, WIDTH)] * 2
    interpreter = torch.fx.Interpreter(torch.fx.GraphModule({}, graph))
    values = {}
    interpreter.run_node = lambda node: values.setdefault(
        node, torch.fx.Interpreter.run_node(interpreter, node)
    )
    interpreter.run(*inputs)
    for node, value in values.items():
        node.meta["val"] = value
    return dependence(kept, behind_gradients(graph, lambda one: one is gradient))


def test_a_sum_over_many_may_meet_its_terms_and_nothing_else_may():
    """As in BatchNorm; a row that was taken out has all of its noise."""

    def multiplied(target, *arguments):
        def after(graph, product, kept):
            part = graph.call_function(target, (product, *arguments))
            return graph.call_function(aten.mul.Tensor, (part, kept))

        return after

    assert verdict(multiplied(aten.sum.dim_IntList, [0])).reason == ""
    for refused in (
        multiplied(aten.select.int, 0, 0),
        multiplied(aten.slice.Tensor, 0, 0, 1),
        multiplied(aten.sum.dim_IntList, [1], True),
        multiplied(aten.neg.default),
    ):
        assert "mul" in verdict(refused).reason

    def few(graph, product, kept):
        rows = graph.call_function(aten.slice.Tensor, (product, 0, 0, 4))
        total = graph.call_function(aten.sum.dim_IntList, (rows, [0]))
        return graph.call_function(aten.mul.Tensor, (total, kept))

    assert "mul" in verdict(few).reason


def test_choices_are_refused_and_a_compressed_model_is_told_the_way_out():
    config = CompressionConfig(choices=((Part(), Keep()),))
    with pytest.raises(ValueError, match="takes no choices"):
        compressed_backend(config)
    compiled = torch.compile(compress(Sage()), backend="eager")
    with (
        warnings.catch_warnings(record=True) as caught,
        pytest.raises(RuntimeError, match="compressed_backend"),
    ):
        compiled(*given())
    assert not [one for one in caught if "pop from empty" in str(one.message)]
    torch.compiler.reset()
