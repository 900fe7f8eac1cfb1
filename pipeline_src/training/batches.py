"""Mini-batches as a training takes them: what a loader cuts, on the training's device.

A batch is a graph of its own. Means over neighbours, and the degrees of a GCN, are
those within it, and its loss is the mean over its nodes that are trained on: for
GraphSAINT the setting without normalisation, for Cluster-GCN section 3.2 of the paper.
With sampled neighbours the loss belongs to the seeds alone.

Which nodes a batch has follows from the run's seed, the epoch and the place in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline_src.graphs.graph import Adjacency, Graph, adjacency_from_edges
from pipeline_src.training.spec import BatchSpec

if TYPE_CHECKING:
    from pipeline_src.loading.batches import BatchLoader


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step works on."""

    features: Tensor  # (num_nodes, num_features) float32
    labels: Tensor  # of the batch's nodes, as Graph has them
    train_index: Tensor  # (num_train,) int64, nodes whose loss counts
    aggregation: Any  # of the model that is trained


class Batches:
    """The batches of a training, epoch after epoch; `len` counts those of an epoch."""

    def __init__(
        self,
        spec: BatchSpec,
        graph: Graph,
        aggregation_of: Callable[[Adjacency], Any],  # of the model
        seed: int,
    ) -> None:
        """Cut the graph, where the loader works on parts.

        Raises:
            ValueError: if the graph has fewer nodes than there are to be parts.
        """
        self.spec = spec
        self.device = graph.features.device
        self.aggregation_of = aggregation_of
        self.loader = _loader(spec, graph.to("cpu"), seed)

    def __len__(self) -> int:
        return len(self.loader)

    def of_epoch(self, epoch: int) -> Iterator[tuple[int, Batch]]:
        """Places in an epoch with their batches, where a node is trained on.

        Raises:
            ValueError: if there is none.
        """
        self.loader.set_epoch(epoch)
        has_any = False
        for place, data in enumerate(self.loader):
            batch = self._batch(data)
            if len(batch.train_index):
                has_any = True
                yield place, batch
        if not has_any:
            raise ValueError(
                f"no batch of epoch {epoch + 1} has a node to train on: take a larger "
                f"batch_size or more batches; got {self.spec.to_json()}"
            )

    def _batch(self, data: Any) -> Batch:
        sender, receiver = data.edge_index.numpy()
        adjacency = adjacency_from_edges(
            sender, receiver, data.num_nodes, symmetrize=False
        )
        train = data.train_mask.clone()
        if self.spec.loader == "neighbor":
            train[data.batch_size :] = False
        return Batch(
            data.x.to(self.device),
            data.y.to(self.device),
            train.nonzero().flatten().to(self.device),
            self.aggregation_of(adjacency.to(self.device)),
        )


def _loader(spec: BatchSpec, graph: Graph, seed: int) -> "BatchLoader":
    # PyTorch Geometric takes seconds to import, and full batches do not need it.
    from pipeline_src.loading import clusters, inputs, neighbors, saint

    data, size = inputs.graph_data(graph), spec.batch_size
    match spec.loader:
        case "neighbor":
            fan_outs, train = spec.num_neighbors or (), graph.train_index
            return neighbors.NeighborLoader(
                data, fan_outs, train, size, shuffle=True, seed=seed
            )
        case "saint_node":
            return saint.SaintNodeLoader(data, size, spec.num_steps or 1, seed=seed)
        case "saint_walk":
            steps, length = spec.num_steps or 1, spec.walk_length or 1
            # Norms, which nothing here uses, need not be counted.
            return saint.SaintWalkLoader(data, size, length, steps, 0, seed=seed)
        case "cluster":
            parts = clusters.partition_graph(data, spec.num_parts or 1, seed=seed)
            return clusters.ClusterLoader(data, parts, size, shuffle=True, seed=seed)
    raise ValueError(f"loader: expected one of KEYS_OF_LOADER, got {spec.loader!r}")
