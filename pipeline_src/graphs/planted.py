"""Planted communities with heavy-tailed degrees: the arrays of a synthetic graph.

A degree-corrected planted partition. Node i has a weight

    w_i = (r_i / N) ** (-1 / TAIL),   r a random order 1 .. N of the nodes,

a Pareto law whose largest weight is N ** (1 / TAIL). An edge is a node drawn in
proportion to w and a partner drawn in proportion to w, with probability
`homophily` from the node's own class and otherwise from all nodes. Loops and
repetitions are dropped and drawn again until the wanted number of pairs is there, so
that counts are exact and the expected degree of a node grows with its weight.

Features are the centre of the node's class plus unit noise. A node's own features
say little about its class; the mean over its neighbours says more, since noise
averages out, and not everything, since neighbours of other classes pull it away and
many nodes have few neighbours. That is what gives training a graph network a meaning.

NumPy only; every function is pure in its arguments, the generator among them.
"""

import numpy as np

# ASSUME: survival function of weights falls as w ** -1.5. Social and citation graphs
# have exponents of 1 to 2; 1.5 gives a largest degree of about 1e4 on 1e5 nodes.
TAIL = 1.5
# Rounds of weighted draws before partners are drawn evenly: only small dense graphs,
# where all pairs of heavy nodes are taken, get that far.
WEIGHTED_ROUNDS = 20


def planted_labels(
    num_nodes: int, num_classes: int, generator: np.random.Generator
) -> np.ndarray:
    """Class of each node, (num_nodes,) int64: every class occurs, sizes are uneven.

    The expected size of class k is proportional to 1 / sqrt(k + 1).
    """
    share = 1 / np.sqrt(np.arange(1, num_classes + 1))
    drawn = generator.choice(
        num_classes, size=num_nodes - num_classes, p=share / share.sum()
    )
    return generator.permutation(np.concatenate([np.arange(num_classes), drawn]))


def planted_pairs(
    labels: np.ndarray,  # (num_nodes,) int, 0 .. num_classes - 1
    num_pairs: int,
    homophily: float,  # share of partners drawn inside the node's own class
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Exactly num_pairs different unordered pairs of different nodes.

    Returns:
        smaller and larger node of each pair, each (num_pairs,) int64.

    Raises:
        ValueError: if num_pairs is negative or more than half of all pairs, which
            leaves no room for a heavy tail.
    """
    num_nodes = len(labels)
    most = num_nodes * (num_nodes - 1) // 4
    if not 0 <= num_pairs <= most:
        raise ValueError(
            f"a planted graph of {num_nodes} nodes has 0 to {most} undirected edges "
            f"(half of all pairs), got {num_pairs}: ask for more nodes or fewer edges"
        )
    by_class = np.argsort(labels, kind="stable")
    rank = generator.permutation(num_nodes) + 1
    weights = (rank / num_nodes) ** (-1 / TAIL)

    keys = np.empty(0, dtype=np.int64)
    rounds = 0
    while len(keys) < num_pairs:
        if rounds == WEIGHTED_ROUNDS:
            weights, homophily = np.ones(num_nodes), 0.0
        # A tenth more than is missing, since some are drawn twice.
        num_draws = int(1.1 * (num_pairs - len(keys))) + 16
        node, partner = _draw_pairs(
            weights, by_class, labels, num_draws, homophily, generator
        )
        different = node != partner
        node, partner = node[different], partner[different]
        drawn = np.minimum(node, partner) * num_nodes + np.maximum(node, partner)
        keys = np.concatenate([keys, drawn])
        # Keep the order of drawing: cutting a sorted list would favour small nodes.
        _, first = np.unique(keys, return_index=True)
        keys = keys[np.sort(first)][:num_pairs]
        rounds += 1
    return keys // num_nodes, keys % num_nodes


def planted_features(
    labels: np.ndarray,  # (num_nodes,) int, 0 .. num_classes - 1
    num_classes: int,
    num_features: int,
    separation: float,  # length of a class centre, in standard deviations of the noise
    generator: np.random.Generator,
) -> np.ndarray:
    """Class centre plus standard normal noise, (num_nodes, num_features) float32."""
    centre = generator.standard_normal((num_classes, num_features), dtype=np.float32)
    centre *= separation / np.linalg.norm(centre, axis=1, keepdims=True)
    features = generator.standard_normal((len(labels), num_features), dtype=np.float32)
    features += centre[labels]
    return features


def _draw_pairs(
    weights: np.ndarray,  # (num_nodes,) positive
    by_class: np.ndarray,  # (num_nodes,) the nodes ordered by class
    labels: np.ndarray,  # (num_nodes,)
    num_draws: int,
    homophily: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and partners drawn in proportion to weights; loops and repeats occur."""
    edges = np.concatenate([[0.0], np.cumsum(weights[by_class])])
    class_start = np.searchsorted(labels[by_class], np.arange(labels.max() + 2))

    def node_at(height: np.ndarray) -> np.ndarray:
        """Inverse of the cumulative weight; rounding may not leave the last node."""
        place = np.searchsorted(edges, height, side="right") - 1
        return by_class[np.minimum(place, len(by_class) - 1)]

    node = node_at(generator.random(num_draws) * edges[-1])
    inside = generator.random(num_draws) < homophily
    own = labels[node]
    low = np.where(inside, edges[class_start[own]], 0.0)
    high = np.where(inside, edges[class_start[own + 1]], edges[-1])
    partner = node_at(low + generator.random(num_draws) * (high - low))
    return node, partner
