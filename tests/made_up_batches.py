"""A graph with fields of every kind, when batches are the same, how near means come."""

import math

import numpy as np
import torch
from torch_geometric.data import Data

# A test of a law fails with at most this probability where the law holds; its seed is
# fixed, so it does so always or never.
RISK = 1e-9


def hoeffding(num_draws: int, num_compared: int) -> float:
    """How far a mean of draws in [0, 1] may lie from its expectation.

    Hoeffding's inequality, P(|mean - p| > t) <= 2 exp(-2 n t^2), for each of the
    means compared at once.
    """
    return math.sqrt(math.log(2 * num_compared / RISK) / (2 * num_draws))


def small_data(num_nodes=60, num_edges=400, seed=0) -> Data:
    """A directed multigraph with loops, repeats, and fields of every kind."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return Data(
        x=torch.arange(num_nodes * 3.0).reshape(num_nodes, 3),
        y=torch.arange(num_nodes),
        edge_index=edge_index,
        edge_attr=torch.arange(num_edges),
        names=[f"node {node}" for node in range(num_nodes)],
        rank=np.arange(num_nodes),
        title="a graph",
    )


def same_batches(one, other) -> bool:
    return all(same(*pair) for pair in zip(one, other, strict=True))


def same(one: Data, other: Data) -> bool:
    """Whether two batches hold the same to the bit."""
    one, other = one.to_dict(), other.to_dict()
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            if not torch.equal(value, other[key]):
                return False
        elif not np.array_equal(value, other[key]):
            return False
    return True
