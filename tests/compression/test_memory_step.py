"""A step that is told in advance, against one that is measured."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.utils import to_torch_csr_tensor

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.memory.fakes import Fakes, UnknownValueError
from pipeline_src.compression.memory.kernel_shapes import KernelShapes
from pipeline_src.compression.memory.sparse_parts import parts
from pipeline_src.compression.memory.step import follow_step, mean_square
from pipeline_src.training.meters import (
    ALLOCATION_UNIT,
    allocated_bytes,
    measure_memory,
    resident_bytes,
)
from tests.compression import zoo

CPU = torch.device("cpu")
NODES, EDGES, FEATURES, HIDDEN, CLASSES = 2_000, 20_000, 32, 64, 16
# What the scratch of kernels that nobody wrote down may amount to.
AGREEMENT = 0.05


def edges(num_edges=EDGES):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(NODES, (2, num_edges), generator=generator)


def features():
    return torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(1))


GRAPHS = {
    "edge index": edges,
    "csr": lambda: to_torch_csr_tensor(edges(), size=(NODES, NODES)),
}
MODELS = {
    "sage": lambda: pyg.GraphSAGE(FEATURES, HIDDEN, 3, CLASSES, 0.5, norm="batch"),
    "gcn": lambda: pyg.GCN(FEATURES, HIDDEN, 3, CLASSES, 0.5, norm="batch"),
    "gin": lambda: pyg.GIN(FEATURES, HIDDEN, 3, CLASSES, 0.5, norm="batch"),
    "gat": lambda: pyg.GAT(FEATURES, HIDDEN, 3, CLASSES, 0.5, norm="batch", heads=8),
    "gat2": lambda: pyg.GAT(FEATURES, HIDDEN, 3, CLASSES, 0.5, v2=True, heads=4),
    "gcn cached": lambda: pyg.GCN(FEATURES, HIDDEN, 3, CLASSES, 0.5, cached=True),
}


def measured(model, *inputs):
    """Saved bytes and peak of a step in the midst of training, as the meters see it."""
    optimizer = torch.optim.Adam(model.parameters())

    def forward():
        return mean_square(model(*inputs))

    def step():
        forward().backward()
        optimizer.step()

    step()
    model.zero_grad()
    loss, kept = measure_memory(forward, CPU)
    saved = kept.held - allocated_bytes(loss.nbytes)
    del loss
    _, whole = measure_memory(step, CPU)
    return saved, whole.peak


def predicted(model, *inputs):
    fakes = Fakes(CPU)
    copied, given = fakes.model(model), fakes.values(inputs)
    with fakes.entered():
        return follow_step(copied, given, {}, optimizer=torch.optim.Adam)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", MODELS)
def test_fake_steps_need_what_real_ones_do(name, graph):
    torch.manual_seed(2)
    model, inputs = MODELS[name](), (features(), GRAPHS[graph]())
    saved, peak = measured(model, *inputs)
    found = predicted(model, *inputs)
    assert found.saved == saved
    if graph == "edge index":
        assert found.peak == peak  # no kernel of these has scratch
    assert found.peak == pytest.approx(peak, rel=AGREEMENT)
    parameters = [*model.parameters(), *model.buffers()]
    assert found.model == resident_bytes(parameters)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["sage", "gcn", "gat"])
def test_compressed_steps_are_followed_as_well(name, graph):
    torch.manual_seed(3)
    model, inputs = compress(MODELS[name]()), (features(), GRAPHS[graph]())
    saved, peak = measured(model, *inputs)
    found = follow_step(copy.deepcopy(model), inputs, {}, optimizer=torch.optim.Adam)
    assert found.saved == saved
    assert found.peak == pytest.approx(peak, rel=AGREEMENT)


def test_compressed_steps_are_followed_on_fakes():
    torch.manual_seed(4)
    model = compress(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)))
    x = torch.randn(NODES, 8)
    saved, peak = measured(model, x)
    found = predicted(model, x)
    assert (found.saved, found.peak) == (saved, pytest.approx(peak, rel=AGREEMENT))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_any_layer_keeps_on_fakes_what_it_keeps(name):
    """But for numbers, which PyTorch turns to tensors without an operation."""
    torch.manual_seed(5)
    model, inputs = zoo.MODELS[name](), (zoo.features(), zoo.edges())
    saved, _ = measured(model, *inputs)
    found = predicted(model, *inputs)
    forward = [moment for moment in found.moments if moment.phase == "forward"]
    numbers, rest = divmod(saved - found.saved, ALLOCATION_UNIT)
    assert rest == 0
    assert 0 <= numbers <= len(forward)


def test_a_dense_adjacency_is_an_input_like_others():
    torch.manual_seed(6)
    model = pyg.DenseSAGEConv(FEATURES, HIDDEN)
    inputs = (features()[:500], torch.rand(500, 500))
    saved, peak = measured(model, *inputs)
    found = predicted(model, *inputs)
    assert (found.saved, found.peak) == (saved, pytest.approx(peak, rel=AGREEMENT))


def test_shapes_alone_will_do():
    """Without values of indices the graph is taken to have no self-loops."""
    index = edges()
    index = index[:, index[0] != index[1]]
    model = MODELS["gat"]()
    on_meta = [torch.empty_like(one, device="meta") for one in (features(), index)]
    assert predicted(model, *on_meta).saved == predicted(model, features(), index).saved


def test_shapes_of_a_sparse_matrix_alone_will_do():
    """The counts of its rows add up to its values, whatever they are."""
    torch.manual_seed(7)
    index = edges()
    index = torch.unique(index[:, index[0] != index[1]], dim=1)
    matrix = to_torch_csr_tensor(index, size=(NODES, NODES))
    model = compress(pyg.SAGEConv(FEATURES, CLASSES))
    on_meta = torch.sparse_csr_tensor(
        *(one.to("meta") for one in (matrix.crow_indices(), matrix.col_indices())),
        matrix.values().to("meta"),
        size=matrix.shape,
    )
    found, expected = (predicted(model, features(), one) for one in (on_meta, matrix))
    assert (found.saved, found.state) == (expected.saved, expected.state)


def test_the_transpose_of_a_fake_matrix_has_its_parts():
    fakes = Fakes(CPU)
    fake = fakes.values(GRAPHS["csr"]())
    with fakes.entered():
        found = [(part.shape, part.dtype) for part in parts(fake.t())]
        # Indices have their values still, and are no memory of their own.
        assert [part.tolist() for part in parts(fake.t())[:2]] == [
            part.tolist() for part in parts(GRAPHS["csr"]())[:2]
        ]
    assert found == [(part.shape, part.dtype) for part in parts(GRAPHS["csr"]().t())]


def test_values_that_were_overwritten_are_not_known():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            counts = torch.zeros(3, dtype=torch.int64)
            view = counts[1:]
            counts[1:] = (x.sum() > 0).long()
            return self.linear(x)[: int(view.sum())]

    with pytest.raises(UnknownValueError):
        predicted(Overwrites(), features())


def test_values_that_are_needed_are_asked_for():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES)

        def forward(self, x, index):
            return self.linear(x)[: int(index.max()) // 2]

    model = Counts()
    assert predicted(model, features(), edges()).saved >= 0
    with pytest.raises(UnknownValueError, match="give the integers of the input"):
        predicted(model, features(), edges().to("meta"))


def test_kernels_write_where_they_wrote():
    """What a kernel changed in place is not made anew when it is told from memory."""

    def plain(x, width):
        return x.add_(1)[1:], x.new_empty(len(x), width)

    fakes, shapes = Fakes(CPU), KernelShapes()
    with fakes.entered():
        for _ in range(2):
            x = torch.empty(6, 4)
            view, new = shapes.results(plain, (x, 3))
            assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
            assert (view.shape, view.storage_offset()) == ((5, 4), 4)
            assert new.shape == (6, 3)


def test_neither_model_nor_noise_is_touched():
    model, inputs = MODELS["sage"](), (features(), edges())
    before = copy.deepcopy(model.state_dict())
    noise = torch.get_rng_state()
    predicted(model, *inputs)
    assert torch.equal(torch.get_rng_state(), noise)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(one.grad is None for one in model.parameters())


def test_the_optimiser_is_state_and_no_peak():
    """Adam keeps two floats for each parameter, and the count of its steps."""
    model, x = nn.Linear(512, 512, bias=False), torch.randn(64, 512)
    found = predicted(model, x)
    assert found.state == 2 * model.weight.nbytes + allocated_bytes(4)


def test_what_a_layer_caches_is_state():
    model = MODELS["gcn cached"]()
    inputs = (features(), edges())
    plain = predicted(MODELS["gcn"](), *inputs)
    found = predicted(model, *inputs)
    # Normalised edges, loops among them: two indices and a weight for each layer.
    index = edges()
    count = int((index[0] != index[1]).sum()) + NODES
    cached = 3 * (allocated_bytes(16 * count) + allocated_bytes(4 * count))
    adam = 2 * resident_bytes(model.parameters()) + 512 * len([*model.parameters()])
    assert found.state == adam + cached
    assert plain.state < found.state
