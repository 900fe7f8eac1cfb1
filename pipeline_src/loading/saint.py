"""GraphSAINT: batches that are subgraphs, and what makes up for how they were drawn.

Zeng et al. 2020 (arXiv 1907.04931), section 3. A batch is the subgraph on a random set
of nodes V_s, with all edges between them. Sets favour some nodes and some edges. With

    p_v = P(v in V_s),    p_uv = P(u and v in V_s),

a mean over all nodes is, in expectation, the sum over the batch of `node_norm` times
what each node says, and where v is in a batch, a sum over the edges u -> v that v
receives in the graph is, in expectation, the sum over those in the batch of `edge_norm`
times what each edge brings (section 3.2 of the paper, with its proposition 3.1):

    node_norm_v = 1 / (num_nodes p_v),    edge_norm_uv = p_v / p_uv.

(PyTorch Geometric divides the sender's count by the edge's; the paper, and this module,
the receiver's, which is what makes the sum that the receiver forms unbiased.)

For nodes drawn one by one p is known, and so are both norms. For walks it is counted in
M subgraphs drawn ahead. What is then in a batch may have been in none of them, so the
batch itself counts as one more:

    p_v ~ (C_v + 1) / (M + 1),    p_uv / p_v ~ (C_uv + 1) / (C_v + 1).

Since C_v is binomial and independent of the batch, the weight that v has in the mean,
which should be 1, is in expectation

    p_v E[(M + 1) / (C_v + 1)] = 1 - (1 - p_v)^(M + 1),

and that of an edge, given C_v, 1 - (1 - p_uv / p_v)^(C_v + 1): all that is lost is the
chance that none of as many subgraphs holds what is counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch_geometric.data import Data

from pipeline_src.loading.batches import Batch, BatchLoader, Draw, Seed
from pipeline_src.loading.in_edges import InEdges, Subgraph, induced_subgraph
from pipeline_src.loading.inputs import whole_number

Norms = dict[str, np.ndarray]


class SaintNodeLoader(BatchLoader):
    """Batches are subgraphs on nodes drawn one by one (GraphSAINT's node sampler).

    A node u is drawn in proportion to the sum of A_vu^2 over all v, with A the mean
    over a node and those it hears from: the law of section 3.4 of the paper, with the
    node itself among its neighbours, so that every node can be drawn. Repeated draws
    count once, so a batch has at most `batch_size` nodes.

    Each batch is a `Data` with the fields of its nodes and edges, `n_id`, `e_id`, and

    * `node_norm`, (num_nodes,) float32: what a node's loss is multiplied by, so that
      the sum over a batch is, in the mean, the mean over the graph;
    * `edge_norm`, (num_edges,) float32: what a message is multiplied by.

    Both are exact. What a batch holds follows from (seed, epoch, place in the epoch).

    Args:
        data: the graph, on the CPU, with an `edge_index` from senders to receivers.
        batch_size: how many draws make a batch.
        num_steps: how many batches make an epoch.
        seed: of everything drawn.
        workers: as for `NeighborLoader`.

    Raises:
        TypeError: if `data` is no homogeneous graph or an argument is of another kind.
        ValueError: if there is no usable `edge_index`, or a number is out of range.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        num_steps: int = 1,
        *,
        seed: int = 0,
        **workers: Any,
    ) -> None:
        draw = NodeDraw(data, batch_size)
        num_steps = whole_number("num_steps", num_steps, 1)
        super().__init__(data, draw, num_steps, seed, workers)


class SaintWalkLoader(BatchLoader):
    """Batches are subgraphs on random walks (GraphSAINT's random walk sampler).

    `batch_size` roots are drawn evenly from all nodes, with repetition. From each a
    walk goes `walk_length` steps, every time to the sender of one of the edges that
    the node receives, drawn evenly; where there is none it stays.

    Each batch is a `Data` as that of `SaintNodeLoader`. Its norms are counted in
    subgraphs drawn ahead, when the loader is made.

    Args:
        data: the graph, on the CPU, with an `edge_index` from senders to receivers.
        batch_size: roots in a batch.
        walk_length: steps of each walk.
        num_steps: how many batches make an epoch.
        sample_coverage: in how many of the subgraphs drawn ahead a node is on average;
            0: nothing is counted and batches have no norms.
        seed: of everything drawn.
        workers: as for `NeighborLoader`.

    Raises:
        TypeError: if `data` is no homogeneous graph or an argument is of another kind.
        ValueError: if there is no usable `edge_index`, or a number is out of range.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        walk_length: int,
        num_steps: int = 1,
        sample_coverage: int = 50,
        *,
        seed: int = 0,
        **workers: Any,
    ) -> None:
        draw = WalkDraw(data, batch_size, walk_length)
        num_steps = whole_number("num_steps", num_steps, 1)
        coverage = whole_number("sample_coverage", sample_coverage, 0)
        if coverage:
            stream = Seed(whole_number("seed", seed, 0))
            draw.counts = count_subgraphs(draw, stream, coverage)
        super().__init__(data, draw, num_steps, seed, workers)


class SubgraphDraw(Draw):
    """Sets of nodes, and norms of the subgraph on one."""

    def nodes(self, generator: np.random.Generator) -> np.ndarray:
        """A set of nodes, sorted."""
        raise NotImplementedError

    def norms(self, subgraph: Subgraph) -> Norms:
        """node_norm and edge_norm, float64; none where nothing was counted."""
        raise NotImplementedError

    def __call__(self, seed: Seed, epoch: int, batch: int) -> Batch:
        """The batch at a place of an epoch."""
        subgraph = induced_subgraph(self.rows, self.nodes(seed.of(epoch, batch)))
        norms = self.norms(subgraph)
        return subgraph, {name: norm.astype(np.float32) for name, norm in norms.items()}


class NodeDraw(SubgraphDraw):
    """What SaintNodeLoader draws."""

    def __init__(self, data: Data, batch_size: int) -> None:
        super().__init__(data)
        self.num_draws = whole_number("batch_size", batch_size, 1)
        self.share = node_shares(self.rows)
        self.height = np.cumsum(self.share)

    def nodes(self, generator: np.random.Generator) -> np.ndarray:
        """A set of nodes, sorted."""
        drawn = generator.random(self.num_draws) * self.height[-1]
        place = np.searchsorted(self.height, drawn, side="right")
        # Rounding may not leave the last node.
        return np.unique(np.minimum(place, len(self.height) - 1))

    def norms(self, subgraph: Subgraph) -> Norms:
        """Exact: of n draws, each is v with probability P_v.

        p_uv = p_u + p_v - P(u or v) for different nodes, and p_v for a loop.
        """
        share = self.share[subgraph.node]
        inside = self._ever(share)
        u, v = subgraph.sender, subgraph.receiver
        both = inside[u] + inside[v] - self._ever(share[u] + share[v])
        both = np.where(u == v, inside[v], both)
        return {
            "node_norm": 1 / (self.rows.num_nodes * inside),
            "edge_norm": inside[v] / both,
        }

    def _ever(self, share: np.ndarray) -> np.ndarray:
        """Whether one of the draws falls into a share of the whole: the probability."""
        with np.errstate(divide="ignore"):  # all of it, where a graph has two nodes
            never = self.num_draws * np.log1p(-np.minimum(share, 1))
        return -np.expm1(never)


class WalkDraw(SubgraphDraw):
    """What SaintWalkLoader draws."""

    counts: "Counts | None" = None

    def __init__(self, data: Data, num_roots: int, walk_length: int) -> None:
        super().__init__(data)
        self.num_roots = whole_number("batch_size", num_roots, 1)
        self.walk_length = whole_number("walk_length", walk_length, 1)

    def nodes(self, generator: np.random.Generator) -> np.ndarray:
        """A set of nodes, sorted."""
        rows = self.rows
        walk = [generator.integers(0, rows.num_nodes, self.num_roots)]
        for _ in range(self.walk_length):
            here = walk[-1]
            start = rows.row_pointer[here]
            degree = rows.row_pointer[here + 1] - start
            stuck = degree == 0
            place = start + generator.integers(0, np.where(stuck, 1, degree))
            there = here.copy()
            there[~stuck] = rows.sender[place[~stuck]]
            walk.append(there)
        return np.unique(np.concatenate(walk))

    def norms(self, subgraph: Subgraph) -> Norms:
        """From what was counted."""
        return {} if self.counts is None else self.counts.norms(subgraph)


@dataclass(frozen=True, eq=False)
class Counts:
    """In how many of the subgraphs drawn ahead each node and each edge was."""

    num_subgraphs: int
    node: np.ndarray  # (num_nodes,) int64
    edge: np.ndarray  # (num_edges,) int64

    def norms(self, subgraph: Subgraph) -> Norms:
        """Of a further subgraph, which counts as well."""
        node = self.node[subgraph.node] + 1
        edge = self.edge[subgraph.edge] + 1
        return {
            "node_norm": (self.num_subgraphs + 1) / (node * len(self.node)),
            "edge_norm": node[subgraph.receiver] / edge,
        }


def count_subgraphs(draw: SubgraphDraw, seed: Seed, coverage: int) -> Counts:
    """Subgraphs drawn until a node was in `coverage` of them on average."""
    node = np.zeros(draw.rows.num_nodes, dtype=np.int64)
    edge = np.zeros(len(draw.rows.edge), dtype=np.int64)
    number = seen = 0
    while seen < coverage * len(node):
        drawn = draw.nodes(seed.of_count(number))
        node[drawn] += 1
        edge[induced_subgraph(draw.rows, drawn).edge] += 1
        number, seen = number + 1, seen + len(drawn)
    return Counts(number, node, edge)


def node_shares(rows: InEdges) -> np.ndarray:
    """P_u, (num_nodes,) float64: u's part of the sum of all A_vu^2."""
    weight = 1.0 / (rows.degree + 1) ** 2  # of each that v hears from, v among them
    receiver = np.repeat(np.arange(rows.num_nodes), rows.degree)
    total = weight + np.bincount(rows.sender, weight[receiver], rows.num_nodes)
    return total / total.sum()
