"""Stratified splits."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.graphs.splits import stratified_split


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(0, 100))
def test_stratified_split_keeps_shares(labels, seed):
    """Each node once; in total and per class within the rounding of runs of five.

    A run of m nodes in the pattern TTTVX holds m/5 of V to within 1, and 3m/5 of T
    to within 6/5.
    """
    labels = np.array(labels, dtype=np.int64)
    split = stratified_split(labels, seed)
    used = torch.cat(list(split.values()))
    assert sorted(used.tolist()) == list(range(len(labels)))
    shares = {"train_index": 3 / 5, "validation_index": 1 / 5, "test_index": 1 / 5}
    for name, share in shares.items():
        for members in [labels >= 0, *(labels == k for k in range(5))]:
            count = members[split[name]].sum()
            assert abs(count - share * members.sum()) <= 6 / 5 + 1e-9
