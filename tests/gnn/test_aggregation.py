import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.gnn import aggregation as aggregations
from pipeline_src.gnn.aggregation import gcn_aggregation, mean_aggregation
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.training.meters import allocated_bytes, resident_bytes

UNIT_ROUNDOFF = 2.0**-24  # of float32


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def adjacencies(draw):
    """Small, dense or empty, with isolated nodes, self loops, one way or both ways."""
    num_nodes = draw(st.integers(1, 9))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=30))
    source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    both_ways = draw(st.booleans())
    return adjacency_from_edges(source, target, num_nodes, symmetrize=both_ways)


def in_neighbors(adjacency):
    """Senders to each node, as lists."""
    starts, columns = adjacency.row_pointer.tolist(), adjacency.column.tolist()
    return [columns[starts[i] : starts[i + 1]] for i in range(adjacency.num_nodes)]


def edge_index(adjacency):
    """(2, num_entries) senders and receivers, as torch_geometric lists edges."""
    pairs = [(j, i) for i, js in enumerate(in_neighbors(adjacency)) for j in js]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def dense(aggregation, num_nodes):
    """The matrix of a linear map: what it makes of the identity, exactly."""
    return aggregation(torch.eye(num_nodes))


@settings(max_examples=100)
@given(adjacency=adjacencies())
def test_mean_equals_the_dense_matrix(adjacency):
    """Row i holds one over its number of senders; a node without any gets zeros."""
    num_nodes = adjacency.num_nodes
    expected = torch.zeros(num_nodes, num_nodes)
    for i, senders in enumerate(in_neighbors(adjacency)):
        for j in senders:
            expected[i, j] = 1 / len(senders)
    assert torch.equal(dense(mean_aggregation(adjacency), num_nodes), expected)


@settings(max_examples=100)
@given(adjacency=adjacencies())
def test_gcn_equals_the_dense_matrix(adjacency):
    """D**-1/2 (A + I) D**-1/2; a loop that is there counts once.

    Two reciprocal square roots of relative error 2**-23 and a product, or, on the
    diagonal, two products: at most 4 x 2**-23.
    """
    num_nodes = adjacency.num_nodes
    matrix = torch.eye(num_nodes, dtype=torch.float64)
    for i, senders in enumerate(in_neighbors(adjacency)):
        matrix[i, senders] = 1.0
    root = matrix.sum(dim=1).rsqrt()
    expected = root[:, None] * matrix * root
    got = dense(gcn_aggregation(adjacency), num_nodes)
    assert torch.all((got - expected).abs() <= 2.0**-21 * expected)


@pytest.mark.parametrize("aggregate", [mean_aggregation, gcn_aggregation])
@settings(max_examples=60)
@given(adjacency=adjacencies())
def test_transpose_is_the_adjoint(aggregate, adjacency):
    """The matrix of transpose is the transposed one; ⟨A x, y⟩ = ⟨x, Aᵀ y⟩.

    Both sides sum the same terms y_i A_ij x_j, of which each node has at most N and
    each inner product N times the width. Each sum of k terms and its products are off
    by at most k + 1 roundings of the sum of absolute terms.
    """
    aggregation, num_nodes, width = aggregate(adjacency), adjacency.num_nodes, 3
    matrix = dense(aggregation, num_nodes)
    assert torch.equal(aggregation.transpose(torch.eye(num_nodes)), matrix.T)
    x, y = normal(num_nodes, width), normal(num_nodes, width, seed=1)
    left = (aggregation(x) * y).double().sum()
    right = (x * aggregation.transpose(y)).double().sum()
    terms = (y.abs().double() * (matrix.double() @ x.abs().double())).sum()
    assert abs(left - right) <= 2 * (num_nodes + 3) * UNIT_ROUNDOFF * terms


@pytest.mark.parametrize("aggregate", [mean_aggregation, gcn_aggregation])
def test_a_symmetric_map_shares_its_structure_with_the_graph(aggregate):
    """Weights are all that is new: the index tensors are the graph's own."""
    one_way = adjacency_from_edges(
        np.array([0, 1, 1]), np.array([1, 2, 1]), 4, symmetrize=False
    )
    both_ways = adjacency_from_edges(np.array([0, 1, 1]), np.array([1, 2, 1]), 4)
    for adjacency in (one_way, both_ways):
        aggregation = aggregate(adjacency)
        source = adjacency.transposed or adjacency
        for matrix, structure in (
            (aggregation.matrix, adjacency),
            (aggregation.transposed_matrix, source),
        ):
            pointers = matrix.crow_indices().data_ptr(), matrix.col_indices().data_ptr()
            assert pointers == (
                structure.row_pointer.data_ptr(),
                structure.column.data_ptr(),
            )


@pytest.mark.parametrize(
    ("aggregate", "num_weights"), [(mean_aggregation, 2), (gcn_aggregation, 1)]
)
def test_bytes_beside_the_graph_are_those_of_the_weights(aggregate, num_weights):
    """One weight per entry serves both ways, but for the mean; GCN has N more."""
    generator = np.random.default_rng(0)
    source, target = generator.integers(0, 500, (2, 3000))
    adjacency = adjacency_from_edges(source, target, 500)
    aggregation = aggregate(adjacency)
    graph = [adjacency.row_pointer, adjacency.column]
    added = resident_bytes([*graph, *aggregation.tensors()]) - resident_bytes(graph)
    nodes = allocated_bytes(4 * 500) if aggregation.self_weight is not None else 0
    assert added == num_weights * allocated_bytes(4 * adjacency.num_entries) + nodes
    assert (aggregation.self_weight is None) == (aggregate is mean_aggregation)


@pytest.fixture(scope="module")
def pyg():
    """torch_geometric's convolutions: slow to import."""
    return pytest.importorskip("torch_geometric.nn")


def chain(symmetrize):
    """Nodes 0 to 6: one isolated (6), loops at 2 and 5, of which 5 has nothing else."""
    source = np.array([0, 1, 2, 3, 0, 2, 4, 5])
    target = np.array([1, 2, 3, 1, 3, 2, 0, 5])
    return adjacency_from_edges(source, target, 7, symmetrize=symmetrize)


@pytest.mark.parametrize("symmetrize", [False, True], ids=["directed", "undirected"])
def test_mean_equals_that_of_sage_in_torch_geometric(pyg, symmetrize):
    """A SAGEConv whose weight is the identity; sums of at most 4 terms."""
    adjacency, width = chain(symmetrize), 5
    layer = pyg.SAGEConv(width, width, aggr="mean", bias=False, root_weight=False)
    torch.nn.init.eye_(layer.lin_l.weight)
    x = normal(adjacency.num_nodes, width)
    with torch.no_grad():
        expected = layer(x, edge_index(adjacency))
    error = (mean_aggregation(adjacency)(x) - expected).abs()
    assert torch.all(error <= 2 * 6 * UNIT_ROUNDOFF * x.abs().max())


@pytest.mark.parametrize("symmetrize", [False, True], ids=["directed", "undirected"])
def test_gcn_equals_the_normalization_of_torch_geometric(pyg, symmetrize):
    """gcn_norm adds the self loops that are missing; weights to 2**-21, as above."""
    adjacency = chain(symmetrize)
    num_nodes = adjacency.num_nodes
    edges, weights = pyg.conv.gcn_conv.gcn_norm(
        edge_index(adjacency), None, num_nodes, add_self_loops=True
    )
    expected = torch.zeros(num_nodes, num_nodes)
    expected[edges[1], edges[0]] = weights
    got = dense(gcn_aggregation(adjacency), num_nodes)
    assert edges.shape[1] == int((expected > 0).sum())
    assert torch.all((got - expected).abs() <= 2 * 2.0**-21 * expected)


def nan_filled(x):
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("aggregate", [mean_aggregation, gcn_aggregation])
def test_what_the_output_held_before_does_not_matter(aggregate, monkeypatch):
    """Neither on a CPU nor where a product adds 0 times the output, NaN as it may be.

    A device that is not known to leave the output unread gets zeros to read.
    """
    adjacency = chain(symmetrize=False)
    x = normal(adjacency.num_nodes, 5)
    aggregation = aggregate(adjacency)
    expected, output = aggregation(x), nan_filled(x)
    aggregation.into(x, output)
    assert torch.equal(output, expected)

    addmm = torch.addmm

    def reading(given, matrix, dense, *, beta, out):
        return out.copy_(addmm(given * beta, matrix, dense))

    monkeypatch.setattr(torch, "addmm", reading)
    monkeypatch.setattr(aggregations, "_OVERWRITES", set())
    output = nan_filled(x)
    aggregation.into(x, output)
    assert torch.equal(output, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("symmetrize", [False, True], ids=["directed", "undirected"])
@pytest.mark.parametrize("aggregate", [mean_aggregation, gcn_aggregation])
def test_a_gpu_overwrites_its_output_and_agrees_with_a_cpu(aggregate, symmetrize):
    """A row's sum of k terms is off by k + 19 roundings of the sum of their sizes.

    On either device: k - 1 sums, k products, one more of each for the self loop. And
    16 for weights of two reciprocal roots, which CUDA promises to 2 ulp each.
    """
    generator = np.random.default_rng(0)
    source, target = generator.integers(0, 3000, (2, 40_000))
    adjacency = adjacency_from_edges(source, target, 3000, symmetrize=symmetrize)
    on_cpu, on_gpu = aggregate(adjacency), aggregate(adjacency.to("cuda"))
    terms = int(adjacency.degree.max()) + 19
    for width in (1, 40, 128):
        x = normal(3000, width)
        output = nan_filled(x.cuda())
        on_gpu.into(x.cuda(), output)
        bound = 2 * terms * UNIT_ROUNDOFF * on_cpu(x.abs())
        assert torch.all((output.cpu() - on_cpu(x)).abs() <= bound)
        gradient = on_gpu.transpose(x.cuda()).cpu()
        most = int((adjacency.transposed or adjacency).degree.max()) + 19
        bound = 2 * most * UNIT_ROUNDOFF * on_cpu.transpose(x.abs())
        assert torch.all((gradient - on_cpu.transpose(x)).abs() <= bound)
