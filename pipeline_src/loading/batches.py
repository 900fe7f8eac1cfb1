"""From a draw to a stream of batches, made ahead by worker processes.

What a batch holds is a function of (seed, epoch, place in the epoch). Workers are
handed (epoch, place), so it makes no difference which of them makes a batch, how many
there are, whether they stay for the next epoch, or what else draws numbers.

Seeds are those of NumPy's SeedSequence: the loader's seed is the entropy, and what a
stream of numbers is for is its spawn key, which keeps streams apart for any numbers.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Data

from pipeline_src.loading.in_edges import InEdges, Subgraph
from pipeline_src.loading.inputs import in_edges_of, whole_number

WORKER_OPTIONS = (
    *("num_workers", "prefetch_factor", "persistent_workers", "pin_memory"),
    *("timeout", "multiprocessing_context"),
)

Batch = tuple[Subgraph, dict[str, Any]]  # what is cut out, and more fields
Place = tuple[int, int]  # epoch, and number of the batch in it


@dataclass(frozen=True)
class Seed:
    """Streams of random numbers, one for each thing that is drawn."""

    entropy: int

    def of(self, epoch: int, batch: int) -> np.random.Generator:
        """For what one batch draws."""
        return self._stream(0, epoch, batch)

    def of_epoch(self, epoch: int) -> np.random.Generator:
        """For what all batches of an epoch share, such as the order of seeds."""
        return self._stream(1, epoch)

    def of_count(self, number: int) -> np.random.Generator:
        """For a subgraph drawn ahead of all epochs, to be counted."""
        return self._stream(2, number)

    def _stream(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence(self.entropy, spawn_key=key)
        )


class Draw:
    """Which nodes and edges the batch at a place of an epoch has."""

    rows: InEdges

    def __init__(self, data: Data) -> None:
        self.rows = in_edges_of(data)

    def __call__(self, seed: Seed, epoch: int, batch: int) -> Batch:
        """The batch at a place of an epoch, and its fields beside those of `data`."""
        raise NotImplementedError


class BatchLoader(DataLoader[Any]):
    """A DataLoader whose batches follow from seed, epoch and place alone."""

    def __init__(
        self,
        data: Data,
        draw: Draw,
        num_batches: int,
        seed: int,
        workers: dict[str, Any],
    ) -> None:
        for name in workers:
            if name not in WORKER_OPTIONS:
                raise TypeError(
                    f"{name}: no argument of {type(self).__name__}; of "
                    f"torch.utils.data.DataLoader it takes {', '.join(WORKER_OPTIONS)}"
                )
        if num_batches < 1:
            raise ValueError(
                "expected at least one batch in an epoch, got none: take a smaller "
                "batch_size, or keep the last batch (drop_last=False)"
            )
        self._places = _Places(num_batches)
        self.epoch = 0
        self.draw = draw
        super().__init__(
            # A copy of the outermost layer: fields that are set later stay apart.
            _Cuts(copy.copy(data), draw, Seed(whole_number("seed", seed, 0))),
            batch_size=None,
            sampler=self._places,
            # The iterator draws a number that nothing here uses: not from the
            # global generator, whose state belongs to the training.
            generator=torch.Generator(),
            **workers,
        )

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass over the loader goes through."""
        self.epoch = whole_number("epoch", epoch, 0)

    def __iter__(self) -> Any:
        self._places.epoch = self.epoch
        self.epoch += 1
        return super().__iter__()


class _Places(Sampler[Place]):
    """The places of an epoch in order."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Place]:
        # At once: the epoch of this pass, whatever is set before it has ended.
        return iter([(self.epoch, batch) for batch in range(self.num_batches)])


class _Cuts(Dataset[Any]):
    """The batch at each place."""

    def __init__(self, data: Data, draw: Draw, seed: Seed) -> None:
        self.data, self.draw, self.seed = data, draw, seed

    def __getitem__(self, place: Place) -> Data:
        drawn, fields = self.draw(self.seed, *place)
        return cut(self.data, drawn, fields)


def cut(data: Data, drawn: Subgraph, fields: dict[str, Any]) -> Data:
    """A subgraph with what `data` says of its nodes, its edges and the whole graph.

    Which fields belong to nodes and which to edges is what `data` takes them for.
    """
    node, edge = torch.from_numpy(drawn.node), torch.from_numpy(drawn.edge)
    ends = np.stack([drawn.sender, drawn.receiver])
    batch = Data(edge_index=torch.from_numpy(ends), num_nodes=len(node))
    for key, value in data.to_dict().items():
        if key in ("edge_index", "num_nodes"):
            continue
        if data.is_node_attr(key):
            batch[key] = _rows_of(data, key, value, node)
        elif data.is_edge_attr(key):
            batch[key] = _rows_of(data, key, value, edge)
        else:
            batch[key] = value
    for key, index in (("n_id", node), ("e_id", edge)):
        if key not in batch:  # the graph was cut out of a larger one, and says so
            batch[key] = index
    for key, value in fields.items():
        is_array = isinstance(value, np.ndarray)
        batch[key] = torch.from_numpy(value) if is_array else value
    return batch


def _rows_of(data: Data, key: str, value: Any, index: Tensor) -> Any:
    """What a field says of some nodes or edges."""
    if isinstance(value, Tensor):
        return value.index_select(data.__cat_dim__(key, value), index)
    if isinstance(value, np.ndarray):
        return value.take(index.numpy(), axis=data.__cat_dim__(key, value))
    return [value[place] for place in index.tolist()]
