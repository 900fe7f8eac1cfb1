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

    def sent_widths(self) -> tuple[list[int], list[int]]:
        """Width of the rows of each exchange of a step: of forward, and of backward.

        GCN sends what a layer makes of its input, GraphSAGE the input itself; the first
        layer's is kept (PartAggregation.keep_result_of), and needs no gradient.
        """
        weights = [next(layer.parameters()) for layer in self._layers()]
        if self.layer == "sage":
            widths = [weight.shape[1] for weight in weights[1:]]
        else:
            widths = [weight.shape[0] for weight in weights]
        return widths, widths[::-1]

    @property
    def num_exchanges(self) -> int:
        """Times that rows travel in one step."""
        return sum(map(len, self.sent_widths()))

    def _check_norms(self, num_nodes: int) -> None:
        """Each norm counts the nodes of all ranks itself."""

    def _normalize(self, i: int, x: Tensor, seed: Tensor, finite: Tensor) -> Tensor:
        norm = cast(SyncedBatchNorm, self.norms[i])
        compressor = self.compressors[f"layer{i + 1}.batch_norm"]
        return norm.compressed(x, compressor, seed, finite)
