"""Which nodes train, which validate, which test, where the data do not say."""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline_src.graphs.edges import whole_numbers

PURPOSES = {
    "train_index": "train on",
    "validation_index": "choose the epoch by",
    "test_index": "test on",
}


def stratified_split(labels: np.ndarray, seed: int) -> dict[str, Tensor]:
    """60 % train, 20 % validation, 20 % test, in each class and in total.

    Nodes are put in random order, then stably by class; of each five in a row three
    train, one validates, one tests. So every share is met up to rounding.

    Returns:
        train_index, validation_index and test_index, sorted, as Graph takes them.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    place = np.arange(len(labels)) % 5
    return {
        "train_index": index_tensor(by_class[place < 3]),
        "validation_index": index_tensor(by_class[place == 3]),
        "test_index": index_tensor(by_class[place == 4]),
    }


def index_tensor(nodes: np.ndarray) -> Tensor:
    """Node numbers as Graph keeps them: sorted int64."""
    return torch.from_numpy(np.sort(whole_numbers("nodes", np.asarray(nodes))))


def split_by_count(
    num_nodes: int,
    num_train: int | None,
    num_validation: int | None,
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """Random nodes for training and validation, the others for the test."""
    if num_train is None or num_validation is None:
        raise ValueError(
            "num_train and num_validation go together: give both or neither, "
            f"got {num_train} and {num_validation}"
        )
    if min(num_train, num_validation, num_nodes - num_train - num_validation) < 0:
        raise ValueError(
            f"num_train + num_validation must be 0 .. {num_nodes} (num_nodes), "
            f"got {num_train} + {num_validation}"
        )
    train, validation, test = np.split(
        generator.permutation(num_nodes), [num_train, num_train + num_validation]
    )
    return {
        "train_index": index_tensor(train),
        "validation_index": index_tensor(validation),
        "test_index": index_tensor(test),
    }


def refuse_empty_splits(splits: Mapping[str, Tensor]) -> None:
    """Refuse a split without nodes: what is said of it later would mean nothing.

    Without validation nodes the first epoch would be the best, without training nodes
    the loss is NaN, and without test nodes there is nothing to report.

    Raises:
        ValueError: naming the split.
    """
    for name, nodes in splits.items():
        if not nodes.numel():
            raise ValueError(
                f"{name}: expected at least one node to {PURPOSES[name]}, got none; "
                "take some from another split"
            )


def doubts_about_splits(labels: Tensor, splits: Mapping[str, Tensor]) -> list[str]:
    """What makes an accuracy mean less than it seems, one sentence each."""
    doubts = []
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        if shared := int(torch.isin(first, second).sum()):
            doubts.append(f"{one} and {other} share {shared} nodes")
    for name, nodes in splits.items():
        if nodes.numel() and labels[nodes].unique(dim=0).shape[0] == 1:
            doubts.append(f"all {nodes.numel()} nodes of {name} are of one class")
    return doubts
