"""A training step never waits for the device, mixes none, and launches what it says."""

import pytest

from tests.gpu_proof import versions

if reason := versions.obstacle():
    pytest.skip(reason, allow_module_level=True)

import torch

from tests.gpu_proof import steps, table


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "no_norm"])
@pytest.mark.parametrize("layer", steps.LAYERS)
@pytest.mark.parametrize("policy", steps.METHODS)
def test_a_step_never_waits_and_mixes_no_devices(policy, layer, batch_norm):
    assert steps.traced(policy, layer, batch_norm).faults == []


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "no_norm"])
def test_a_lean_step_takes_few_launches(batch_norm):
    step = steps.traced("lean", "sage", batch_norm)
    assert step.launches <= steps.MOST_LAUNCHES, (step.kernels, step.plain)


def test_the_committed_table_is_what_is_found():
    """If this shows nothing worse: python -m tests.gpu_proof.prove --publish."""
    rows, committed = steps.rows(), table.STEPS.read()
    assert table.STEPS.differences(committed, rows) == []
    assert table.STEPS.gone(committed, rows) == []


PLANTED = {
    "value": (lambda x: x.sum().item(), "stops: Tensor.item"),
    "branch": (lambda x: bool((x > 0).all()), "stops: "),
    "select": (lambda x: x.nonzero(), "nonzero"),
    "to_host": (lambda x: x.cpu(), "stops: Cannot copy out of meta"),
    "from_host": (lambda x: torch.ones(3).to(x.device), "makes the device wait"),
    "mixed": (lambda x: torch.mul(x, torch.ones(3)), "not on the expected device meta"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_waits_or_mixes_is_seen(name):
    action, verdict = PLANTED[name]
    step = steps.Step()
    step.watch(lambda: action(torch.zeros(5, 3, device=steps.DEVICE)))
    assert any(verdict in fault for fault in step.faults), step.faults


def test_launches_are_counted_and_views_are_not():
    x = torch.zeros(4, 4, device=steps.DEVICE)
    step = steps.Step()
    step.watch(lambda: x.view(16)[2:].add_(1).t())
    step.watch(lambda: torch.mm(x, x.T) + torch.empty_like(x))
    assert (dict(step.plain), dict(step.products)) == ({"add_": 1, "add": 1}, {"mm": 1})
    assert (step.launches, step.faults) == (2, [])
