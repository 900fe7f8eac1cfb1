"""Arrays of small graphs as users save them, sound until a test breaks them."""

from typing import Any

import numpy as np
import torch

from pipeline_src.graphs.own.arrays import Arrays
from pipeline_src.graphs.own.given import GivenGraph


def sound_arrays() -> dict[str, np.ndarray]:
    """Six nodes in a ring, both directions, two classes, two nodes for each split."""
    around = np.arange(6)
    ring = np.stack([around, (around + 1) % 6])
    node = np.arange(6)
    return {
        "x": np.linspace(0, 1, 18, dtype=np.float32).reshape(6, 3),
        "y": node % 2,
        "edge_index": np.concatenate([ring, ring[::-1]], axis=1),
        "train_mask": node < 2,
        "val_mask": (node >= 2) & (node < 4),
        "test_mask": node >= 4,
    }


def given(**keys: Any) -> GivenGraph:
    """An entry of a configuration; its path names no file."""
    return GivenGraph.from_params({"path": "mine.pt", **keys})


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
