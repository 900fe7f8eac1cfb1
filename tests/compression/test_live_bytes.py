"""Bytes alive after each operation, against sums by hand and against the profiler."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_src.compression.memory.live_bytes import (
    ALLOCATION_UNIT,
    LOSS,
    LiveBytes,
    Place,
    rounded,
)
from pipeline_src.training import meters

ROWS, WIDTH, OUT = 256, 64, 16
UNIT = ROWS * 4  # bytes of a column


class Small(nn.Module):
    """Two linear maps and a ReLU between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, OUT, bias=False)

    def forward(self, x):
        return self.last(functional.relu(self.first(x)))


def followed(model, *arguments):
    live = LiveBytes(model)
    live.know([*model.parameters(), *model.buffers(), *arguments])
    return live


@pytest.mark.parametrize("nbytes", [0, 1, 511, 512, 513, 10**9])
def test_bytes_are_rounded_as_the_meters_do(nbytes):
    assert meters.ALLOCATION_UNIT == ALLOCATION_UNIT
    assert rounded(nbytes) == meters.allocated_bytes(nbytes)


def test_what_is_kept_is_what_autograd_needs():
    """The output of ReLU serves it and the next map; that of the first map is gone."""
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        output = model(x)
        (block,) = live.blocks(besides=[output])
        assert block.place == Place("", "relu")
        assert block.allocated == ROWS * WIDTH * 4
        assert (block.numel, block.dtype) == (ROWS * WIDTH, torch.float32)
        assert live.now == UNIT * (WIDTH + OUT)
        del output
        assert live.now == 0


def test_peaks_hold_what_goes_and_what_comes():
    """Input and output of an operation are alive together."""
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live, torch.no_grad():
        model(x)
    peaks = {m.place.operation: m.peak for m in live.moments if m.kernel != "t"}
    assert peaks["relu"] == UNIT * 2 * WIDTH
    assert live.now == 0


def test_backward_belongs_to_the_module_whose_gradient_it_computes():
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        with live.in_loss():
            loss = model(x).sum()
        live.phase = "backward"
        loss.backward()
    back = [m for m in live.moments if m.phase == "backward"]
    products = [m.place for m in back if m.kernel == "mm"]
    assert products == [Place("last", "linear")] * 2 + [Place("first", "linear")]
    assert Place("", "relu") in {m.place for m in back}


def test_functions_of_the_loss_have_their_own_place():
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        output = model(x)
        with live.in_loss():
            output.log_softmax(1)
    assert live.moments[-1].place == Place(LOSS, "log_softmax")


def test_views_and_what_was_there_before_cost_nothing():
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        kept = [x[3:], x.t(), x.view(-1), x.detach(), model.first.weight.t()]
    assert live.now == 0
    assert len(kept) == 5


def test_an_address_used_again_is_another_storage():
    """Where a tensor dies and the next one takes its place, nothing is left over."""
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        for _ in range(50):
            y = x + 1
            assert live.now == y.nbytes
            del y
            assert live.now == 0


def test_a_storage_that_grows_is_counted_anew():
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        y = torch.empty(0)
        y.resize_(ROWS, WIDTH)
        assert live.now == ROWS * WIDTH * 4


def test_changes_add_up_to_what_is_alive():
    model, x = Small(), torch.randn(ROWS, WIDTH)
    live = followed(model, x)
    with live:
        model(x).sum().backward()
        total = 0
        changes = iter(live.changes)
        change = next(changes, None)
        for index, moment in enumerate(live.moments):
            while change is not None and change.moment <= index:
                total += change.nbytes
                change = next(changes, None)
            assert total == moment.nbytes


def test_a_failed_forward_leaves_no_hooks_behind():
    model = Small()
    with pytest.raises(RuntimeError), followed(model):
        model(torch.randn(ROWS, WIDTH + 1))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks
    assert model(torch.randn(ROWS, WIDTH)).shape == (ROWS, OUT)
