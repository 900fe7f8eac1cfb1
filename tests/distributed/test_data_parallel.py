"""PyTorch's own data parallelism over mini-batches, around a compressed model."""

import pytest
import rank_cases
import torch

from pipeline_src.distributed.jobs.local import run_on_ranks

# Two orders of sums over the nodes of both batches, through two layers of two products
# and a norm, forward and back, and the loss.
ROUNDING = 2 * (2 * 3 * 2 + 1) * 2 * rank_cases.NODES * 2.0**-24


@pytest.fixture(scope="module")
def parallel():
    """Gradients of each of two ranks, by bits."""
    return run_on_ranks(rank_cases.data_parallel, 2)


@pytest.mark.parametrize("bits", [None, 32])
def test_two_processes_give_the_gradients_of_one_on_the_same_batch(parallel, bits):
    both = [rank_cases.batch(0), rank_cases.batch(1)]
    expected = rank_cases.batch_gradients(rank_cases.batch_model(None, 0), both)
    largest = max(one.norm() for one in expected)
    for found in parallel:
        for ours, theirs in zip(found[bits], expected, strict=True):
            assert (ours - theirs).norm() <= ROUNDING * largest


def test_two_bits_give_the_mean_of_what_each_would_have_alone(parallel):
    """To the bit, rounded by the same seeds: halves are exact."""
    alone = [
        rank_cases.batch_gradients(
            rank_cases.batch_model(2, seed=rank), [rank_cases.batch(rank)]
        )
        for rank in range(2)
    ]
    for found in parallel:
        for ours, *parts in zip(found[2], *alone, strict=True):
            assert torch.equal(ours, (parts[0] + parts[1]) / 2)
    assert not all(map(torch.equal, found[2], found[None])), "codes were kept"
