"""The published memory table, from the tensors that autograd really keeps.

The oracle is the byte model that reproduces the authors' log: each tensor of their
layout, each allocation rounded up to 512 bytes. Ours differs on purpose in two places,
itemised below: projection matrices are drawn again instead of stored, and rows that do
not fill a block are padded and coded instead of kept in float32.
"""

import math

import pytest

from pipeline_src.experiment.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.experiment.training import Trainer, measure_saved_memory
from pipeline_src.gnn.embedded_graphs import arxiv_shape, flickr_shape

MIB = 2**20
ROWS_PER_BLOCK = [1, 2, 4, 8, 16, 32, 64]
# MiB: FP32, then EXACT (G/R = 1) and G/R = 2 .. 64.
PUBLISHED = {
    "arxiv_shape": [786.22, 30.47, 27.88, 26.60, 25.95, 25.72, 25.60, 25.56],
    "flickr_shape": [542.19, 18.48, 17.63, 17.21, 17.04, 16.96, 16.94, 16.94],
}
GRAPHS = {"arxiv_shape": arxiv_shape, "flickr_shape": flickr_shape}
MODELS = {
    "arxiv_shape": (3, 128, 0.5, "log_cross_entropy"),
    "flickr_shape": (2, 256, 0.3, "cross_entropy"),
}


def rounded(nbytes: float) -> int:
    return math.ceil(nbytes / 512) * 512


class Layout:
    """Sizes of a GraphSAGE training in the published layout, INT2 and D/R = 8."""

    def __init__(self, name, graph):
        num_layers, hidden, _, self.loss = MODELS[name]
        self.nodes, self.num_train = graph.num_nodes, graph.train_index.numel()
        self.classes = graph.num_classes
        self.widths = [graph.num_features] + [hidden] * (num_layers - 1)
        self.hidden = [hidden] * (num_layers - 1)

    def kept_tensors(self):
        """Width of each quantised tensor: two per convolution, one per BatchNorm."""
        projected = [math.ceil(width / 8) for width in self.widths]
        return [width for width in projected for _ in range(2)] + self.hidden

    def block_size(self, width, rows):
        return min(rows, 1024 // width) * width

    def shared_bytes(self):
        """What both layouts keep: masks, BatchNorm statistics, the loss side."""
        masks = sum(2 * rounded(self.nodes * width / 8) for width in self.hidden)
        statistics = sum(2 * rounded(4 * width) for width in self.hidden)
        loss = rounded(8 * self.num_train)  # int64 targets
        if self.loss == "cross_entropy":
            loss += rounded(4 * self.num_train * self.classes) + rounded(4)
        else:
            loss += rounded(4)  # total weight of nll_loss
        return masks + statistics + loss

    def stored_projections(self):
        return sum(
            2 * rounded(4 * width * math.ceil(width / 8)) for width in self.widths
        )

    def published_tensor(self, width, rows):
        size = self.block_size(width, rows)
        blocks, tail = divmod(self.nodes * width, size)
        codes = (2 * math.ceil(blocks / 4) * 4 * size + 8) // 8
        return rounded(codes) + 2 * rounded(2 * blocks) + rounded(4 * tail)

    def our_tensor(self, width, rows):
        size = self.block_size(width, rows)
        in_packet = 4 // math.gcd(4, size)
        blocks = math.ceil(self.nodes * width / (size * in_packet)) * in_packet
        return rounded(blocks * size / 4) + 2 * rounded(2 * blocks)

    def total(self, tensor, rows):
        return self.shared_bytes() + sum(
            tensor(width, rows) for width in self.kept_tensors()
        )


def method(rows):
    if rows is None:
        return MethodSpec("fp32", "FP32", "full")
    return MethodSpec("block", "block", "exact", 2, 8, rows)


def trainer(name, graph, rows):
    num_layers, hidden, dropout, loss = MODELS[name]
    model = ModelSpec("sage", "sage", num_layers, hidden, dropout, True)
    training = TrainingSpec(1, 0.01, 0.0, 0.5, loss)
    spec = RunSpec(name, model, method(rows), training, (0,), "cpu", "false")
    return Trainer(spec, graph, None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_kept_reproduce_the_published_table(name):
    graph = GRAPHS[name]()
    layout = Layout(name, graph)
    fp32 = measure_saved_memory(trainer(name, graph, None))[0] / MIB
    assert abs(fp32 - PUBLISHED[name][0]) <= 0.02
    for rows, published in zip(ROWS_PER_BLOCK, PUBLISHED[name][1:], strict=True):
        measured, with_loss = measure_saved_memory(trainer(name, graph, rows))
        # To the byte what the layout says, from the tensors themselves.
        assert measured == layout.total(layout.our_tensor, rows)
        if layout.loss == "cross_entropy":  # the same loss, itself counted
            assert with_loss == measured + rounded(4)
        # The oracle is the published table,
        oracle = layout.stored_projections()
        oracle += layout.total(layout.published_tensor, rows)
        assert abs(oracle / MIB - published) <= 0.02
        # and what separates us from it is the two items, which only ever save.
        tails = sum(
            layout.published_tensor(width, rows) - layout.our_tensor(width, rows)
            for width in layout.kept_tensors()
        )
        assert oracle - measured == layout.stored_projections() + tails
        # At most a block in float32 per tensor, and rounding of its three allocations.
        assert abs(tails) <= sum(
            4 * layout.block_size(width, rows) + 3 * 512
            for width in layout.kept_tensors()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_lean_keeps_codes_and_the_loss_side_alone(name):
    """2 bits per hidden value, two bfloat16 ends per 4 rows, statistics, targets."""
    graph = GRAPHS[name]()
    layout = Layout(name, graph)
    num_layers, hidden, dropout, loss = MODELS[name]
    model = ModelSpec("sage", "sage", num_layers, hidden, dropout, True)
    training = TrainingSpec(1, 0.01, 0.0, 0.5, loss)
    lean = MethodSpec("lean", "lean", "lean", 2, 1, 4)
    spec = RunSpec(name, model, lean, training, (0,), "cpu", "false")
    measured, _ = measure_saved_memory(Trainer(spec, graph, None, 0))
    blocks = math.ceil(graph.num_nodes / 4)
    masks = sum(2 * rounded(layout.nodes * width / 8) for width in layout.hidden)
    codes = sum(rounded(blocks * width) for width in layout.hidden)
    ends = len(layout.hidden) * rounded(2 * 2 * blocks)
    assert measured == layout.shared_bytes() - masks + codes + ends
