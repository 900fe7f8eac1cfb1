"""GraphNetwork on a part: the same parameters, operations and kept activations.

Aggregations fetch the halo (distributed/aggregation.py) and BatchNorm normalises by all
nodes; everything else is local to a node and stays as it is. The names of parameters
are those of GraphNetwork, so that a state moves from one to the other.
"""

from typing import cast

from torch import Tensor, nn

from pipeline_src.distributed.batch_norm import SyncedBatchNorm
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.gnn.models import GraphNetwork, Keep
from pipeline_src.gnn.shape import NetworkShape


class PartNetwork(GraphNetwork):
    """A GraphNetwork of which each rank computes the nodes it owns."""

    def __init__(
        self,
        shape: NetworkShape,
        ranks: Ranks,
        keeper: Keep | None = None,  # None: PyTorch's own operations
        compile: str = "auto",  # of the kernels that pack masks
    ) -> None:
        """Build with parameters drawn from torch's global generator."""
        super().__init__(shape, keeper, compile)
        self.norms = nn.ModuleList(
            SyncedBatchNorm(shape.hidden, ranks) for _ in self.norms
        )

    @property
    def num_exchanges(self) -> int:
        """Times that rows travel in one step: in forward, and in backward.

        The first layer of GraphSAGE aggregates features, which need no gradient.
        """
        num_layers = len(self.convolutions)
        return 2 * num_layers - (1 if self.layer == "sage" else 0)

    def exchanged_widths(self) -> list[int]:
        """Width of the rows of each exchange, in the order of a step."""
        widths = []
        for convolution in self._layers():
            weight = next(convolution.parameters())
            num_outputs, num_inputs = weight.shape
            widths.append(num_inputs if self.layer == "sage" else num_outputs)
        backward = widths[1:] if self.layer == "sage" else widths
        return widths + backward[::-1]

    def _check_norms(self, num_nodes: int) -> None:
        """Each norm counts the nodes of all ranks itself."""

    def _normalize(self, i: int, x: Tensor, seed: Tensor, finite: Tensor) -> Tensor:
        norm = cast(SyncedBatchNorm, self.norms[i])
        compressor = self.compressors[f"layer{i + 1}.batch_norm"]
        return norm.compressed(x, compressor, seed, finite)
