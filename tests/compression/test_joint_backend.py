"""torch.compile with codes: values, gradients, and the bytes that cross."""

import math

import pytest
import torch
from torch import nn

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from pipeline_src.compression.joint.backend import compressed_backend

NUM_NODES, WIDTH = 512, 16
DRAWS = 64


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


def test_gradients_at_two_bits_are_right_in_the_mean():
    """Six standard errors of 63 degrees of freedom: once in ten million per value."""

    def kind():
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 4))

    x, _ = given()
    _, exact = step(*built("inductor", kind), x)
    model, compiled = built(compressed_backend(CompressionConfig(bits=2)), kind)
    found = torch.stack([step(model, compiled, x)[1] for _ in range(DRAWS)])
    spread = found.std(dim=0) / DRAWS**0.5
    assert spread.max() > 0, "nothing was rounded"
    roundings = 2.0**-20 * exact.abs().max()  # sums in another order
    assert ((found.mean(dim=0) - exact).abs() <= 6 * spread + roundings).all()


def test_what_is_read_twice_row_by_row_is_kept_as_it_is():
    backend = compressed_backend(CompressionConfig(bits=2))
    _, compiled = built(
        backend, lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Softmax(1))
    )
    compiled(given()[0])[:, 0].sum().backward()
    kept = [note for note in backend.notes if note.kept == "as it is"]
    assert any(note.shape == (NUM_NODES, 8) for note in kept) or not any(
        "codes" in note.kept for note in backend.notes
    )


def test_choices_are_refused_and_a_compressed_model_is_told_the_way_out():
    config = CompressionConfig(choices=((Part(), Keep()),))
    with pytest.raises(ValueError, match="takes no choices"):
        compressed_backend(config)
    compiled = torch.compile(compress(Sage()), backend="eager")
    with pytest.raises(RuntimeError, match="compressed_backend"):
        compiled(*given())
    torch.compiler.reset()
