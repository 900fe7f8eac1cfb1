"""What loaders are given, checked before the first batch."""

import operator

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from pipeline_src.graphs.graph import Graph
from pipeline_src.loading.in_edges import InEdges, in_edges


def graph_data(graph: Graph) -> Data:
    """The graph as PyTorch Geometric's `Data`, with masks for its splits.

    `edge_index` runs from senders to receivers, sorted by receiver; tensors of nodes
    are shared, not copied.

    >>> from pipeline_src.graphs.embedded import synthetic_graph
    >>> graph_data(synthetic_graph(num_nodes=50, num_edges=200)).num_edges
    200
    """
    adjacency = graph.adjacency
    receiver = torch.arange(adjacency.num_nodes, device=adjacency.column.device)
    receiver = receiver.repeat_interleave(adjacency.degree)
    return Data(
        x=graph.features,
        y=graph.labels,
        edge_index=torch.stack([adjacency.column.long(), receiver]),
        train_mask=_mask(graph.train_index, graph.num_nodes),
        val_mask=_mask(graph.validation_index, graph.num_nodes),
        test_mask=_mask(graph.test_index, graph.num_nodes),
    )


def in_edges_of(data: Data) -> InEdges:
    """The edges of a graph by receiver.

    Raises:
        TypeError: if it is no `Data`.
        ValueError: if its edges are missing, on a device, or name what is no node.
    """
    if not isinstance(data, Data):
        raise TypeError(
            f"data: expected a torch_geometric.data.Data, got {type(data).__name__}; "
            "a Graph becomes one by graph_data(graph), a HeteroData by "
            ".to_homogeneous()"
        )
    edge_index = data.edge_index
    if edge_index is None:
        raise ValueError(
            "data: expected an edge_index of shape (2, num_edges), got none; where the "
            "edges are a matrix (adj_t), build the loader before ToSparseTensor"
        )
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            "data.edge_index: expected the shape (2, num_edges), "
            f"got {tuple(edge_index.shape)}"
        )
    for key, value in data.to_dict().items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            raise ValueError(
                f"data.{key}: expected it on the CPU, where batches are cut, got "
                f"{value.device}; move each batch with batch.to(device)"
            )
    num_nodes = data.num_nodes
    edges = edge_index.long().numpy()
    if edges.size and not 0 <= edges.min() <= edges.max() < num_nodes:
        raise ValueError(
            f"data.edge_index: expected nodes of 0 .. {num_nodes - 1}, "
            f"got {edges.min()} .. {edges.max()}"
        )
    return in_edges(edges, num_nodes)


def input_nodes_of(
    input_nodes: Tensor | None, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Node numbers that an epoch goes through, and the name of each in its batch.

    As PyTorch Geometric's: the place in `input_nodes`, but the node's number where
    nodes were given by a mask.

    Raises:
        TypeError: if it holds neither node numbers nor a mask.
        ValueError: if there are none, or what is no node, or a node twice.
    """
    if input_nodes is None:
        input_nodes = torch.ones(num_nodes, dtype=torch.bool)
    given = torch.as_tensor(input_nodes)
    if given.ndim != 1 or given.is_floating_point() or given.is_complex():
        raise TypeError(
            "input_nodes: expected node numbers or a mask in one dimension, "
            f"got {given.dtype} of shape {tuple(given.shape)}"
        )
    if given.dtype == torch.bool:
        if len(given) != num_nodes:
            raise ValueError(
                f"input_nodes: expected a mask over {num_nodes} nodes, got {len(given)}"
            )
        node = given.nonzero().flatten().numpy()
        name = node
    else:
        node = given.long().numpy()
        name = np.arange(len(node))
    if not len(node):
        raise ValueError("input_nodes: expected at least one node, got none")
    if not 0 <= node.min() <= node.max() < num_nodes:
        raise ValueError(
            f"input_nodes: expected nodes of 0 .. {num_nodes - 1}, "
            f"got {node.min()} .. {node.max()}"
        )
    if len(np.unique(node)) < len(node):
        raise ValueError("input_nodes: expected each node once, got some repeated")
    return node, name


def whole_number(name: str, value: object, least: int, also: str = "") -> int:
    """The value as an int.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is smaller than `least`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}{also}, got {number}")
    return number


def _mask(index: Tensor, num_nodes: int) -> Tensor:
    mask = torch.zeros(num_nodes, dtype=torch.bool, device=index.device)
    mask[index] = True
    return mask
