"""A graph of given counts, drawn where it will be used.

What a step costs follows from counts and degrees, not from what features say. A
synthetic graph of graphs/embedded.py is drawn by NumPy, which takes minutes and
more than 10 GiB for ogbn-products; this one is drawn by the device. Its degrees follow
the same law as those of graphs/planted.py: a node of rank r of N is drawn in proportion
to (r / N) ** (-1 / TAIL), which a power of a uniform number is,

    r = N u ** (1 / (1 - 1 / TAIL)).

Nothing is planted: labels are uniform and features normal, so there is no accuracy to
be had.
"""

import torch
from torch import Tensor

from pipeline_src.graphs.graph import Adjacency, Graph
from pipeline_src.graphs.planted import TAIL
from pipeline_src.graphs.sizes import GraphSizes

EXPONENT = 1 / (1 - 1 / TAIL)
WEIGHTED_ROUNDS = 20  # as in graphs/planted.py


def drawn_graph(name: str, sizes: GraphSizes, device: torch.device) -> Graph:
    """A symmetric graph of exactly these counts, without loops, on the device."""
    generator = torch.Generator(device).manual_seed(0)
    n = sizes.num_nodes
    order = torch.randperm(n, generator=generator, device=device)
    train, validation, test = order.split(
        [
            sizes.num_train,
            sizes.num_validation,
            n - sizes.num_train - sizes.num_validation,
        ]
    )
    return Graph(
        name=name,
        features=torch.randn(n, sizes.num_features, generator=generator, device=device),
        labels=torch.randint(
            sizes.num_classes, (n,), generator=generator, device=device
        ),
        train_index=train,
        validation_index=validation,
        test_index=test,
        adjacency=_drawn_adjacency(n, sizes.num_entries // 2, generator),
        num_classes=sizes.num_classes,
    )


def _drawn_adjacency(
    num_nodes: int, num_pairs: int, generator: torch.Generator
) -> Adjacency:
    """Both directions of num_pairs different pairs of different nodes.

    Raises:
        ValueError: if these are more than half of all pairs.
    """
    most = num_nodes * (num_nodes - 1) // 4
    if num_pairs > most:
        raise ValueError(
            f"a drawn graph of {num_nodes} nodes has at most {most} undirected edges "
            f"(half of all pairs), got {num_pairs}: ask for more nodes or fewer edges"
        )
    device = generator.device
    node_of_rank = torch.randperm(num_nodes, generator=generator, device=device)
    keys = torch.empty(0, dtype=torch.int64, device=device)
    rounds = 0
    while keys.numel() < num_pairs:
        exponent = EXPONENT if rounds < WEIGHTED_ROUNDS else 1.0
        # A tenth more than is missing, since some are drawn twice.
        number = int(1.1 * (num_pairs - keys.numel())) + 16
        ends = torch.rand(
            2, number, dtype=torch.float64, generator=generator, device=device
        )
        ranks = (num_nodes * ends**exponent).to(torch.int64)
        one, other = node_of_rank[ranks.clamp_(max=num_nodes - 1)]
        drawn = torch.minimum(one, other) * num_nodes + torch.maximum(one, other)
        keys = torch.cat([keys, drawn[one != other]]).unique()
        rounds += 1
    # Any of them: a sorted list cut short would favour small nodes.
    chosen = torch.randperm(keys.numel(), generator=generator, device=device)
    keys = keys[chosen[:num_pairs]]
    del chosen
    smaller, larger = keys // num_nodes, keys % num_nodes
    both = torch.cat([keys, larger * num_nodes + smaller]).sort().values
    del keys, smaller, larger
    return _rows_of(both, num_nodes)


def _rows_of(
    keys: Tensor,  # (num_entries,) int64, increasing: row * num_nodes + column
    num_nodes: int,
) -> Adjacency:
    starts = torch.arange(num_nodes + 1, device=keys.device) * num_nodes
    return Adjacency(
        torch.searchsorted(keys, starts).to(torch.int32),
        (keys % num_nodes).to(torch.int32),
    )
