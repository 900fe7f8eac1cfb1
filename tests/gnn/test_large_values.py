"""Hidden values up to the end of float32: gradients are finite, or a layer is named."""

import pytest
import torch

from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.rectified import RectifiedCoder

GRAPH = synthetic_graph(40, 150, 6, 4, seed=2)
BITS = (1, 2, 4, 8)


def network(kind, bits):
    torch.manual_seed(0)
    shape = NetworkShape("sage", 6, 8, 4, 2, 0.0, False)
    if kind == "exact":

        def keep(name, width, may_project):
            return Compressor(bits, width, compile="false")

        return GraphNetwork(shape, keep, compile="false").train()
    coder = RectifiedCoder(bits, 8)
    if kind == "lean without sided codes":
        coder = Compressor(bits, 64, compile="false")
    lean = LeanRecipe((coder,), 8, compile="false")
    return GraphNetwork(shape, lean, compile="false").train()


@pytest.mark.parametrize("kind", ["exact", "lean", "lean without sided codes"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("largest", [1e10, 1e19, 1e30, 1e37, 1e38, 2e38, 3.3e38])
def test_large_hidden_values_have_finite_gradients_or_a_name(kind, bits, largest):
    """Weights behind them are small, so that nothing else leaves float32."""
    model = network(kind, bits)
    on = model.aggregation(GRAPH.adjacency)
    with torch.no_grad():
        hidden = model.convolutions[0].plain(GRAPH.features, on)
        for parameter in model.convolutions[0].parameters():
            parameter.mul_(largest / hidden.abs().max())
        for parameter in model.convolutions[1].parameters():
            parameter.mul_(1e-38)
        hidden = model.convolutions[0].plain(GRAPH.features, on)
    assert torch.isfinite(hidden).all()
    seeds = torch.arange(model.num_seeds, dtype=torch.int32)
    (model(GRAPH.features, on, seeds).sum() * 1e-6).backward()
    if all(torch.isfinite(p.grad).all() for p in model.parameters()):
        return
    with pytest.raises(FloatingPointError, match="layer"):
        model.check_finite()
