"""A training step asks the device for no value: the CPU could run ahead of a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer

METHODS = [
    MethodSpec("fp32", "FP32", "full"),
    MethodSpec("exact", "EXACT", "exact", 2, 4),
    MethodSpec("block8", "G/R = 8", "exact", 2, 4, 8, "clipped_normal"),
    MethodSpec("lean1", "lean", "lean", 1, rows_per_block=8),
    MethodSpec("lean2", "lean", "lean", 2, 1, 8, "clipped_normal"),
    MethodSpec("apart", "lean", "lean", 2, 1, 8, without=("sided_codes",)),
]
# Each has to know a value before the next operation can be asked for.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._unique2.default,
}


class RefuseToWait(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation not in WAITING, f"{operation} waits for the device"
        return operation(*args, **(kwargs or {}))


def trainer(method, layer, device):
    def boundaries_of(bits, size):
        return (0.0, 1.1, 1.9, 3.0)

    model = ModelSpec("model", layer, 3, 8, 0.5, True)
    training = TrainingSpec(2, 0.01, 0.0, 0.5, "log_cross_entropy")
    spec = RunSpec("synthetic", model, method, training, (0,), device)
    graph = synthetic_graph(num_nodes=200, num_edges=1000).to(torch.device(device))
    return Trainer(spec, graph, boundaries_of, seed=0)


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_step_asks_for_no_value(method, layer, monkeypatch):
    one = trainer(method, layer, "cpu")
    # Adam counts its steps on the CPU, whatever the device, and reads the count.
    monkeypatch.setattr(one.optimizer, "step", lambda: None)
    with RefuseToWait():
        one.step(1)


def test_asking_for_a_value_is_noticed():
    with pytest.raises(AssertionError, match="waits for the device"), RefuseToWait():
        torch.ones(3).sum().item()


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_step_never_synchronizes_a_gpu(method):
    one = trainer(method, "sage", "cuda")
    one.step(0)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.step(1)
    finally:
        torch.cuda.set_sync_debug_mode(before)
