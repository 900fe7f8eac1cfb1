"""Seconds of batches and steps: what is timed, and what is published."""

import csv
from pathlib import Path

import pytest
import torch

from pipeline_src import digits_graph, graph_data
from pipeline_src.measuring.loading import CASES, loss_of, measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=lambda case: case.name)
def test_a_row_says_what_was_timed(case):
    row = measure(case, graph_data(digits_graph()), steps=1)
    assert row["loader"] == case.name
    seconds = [value for key, value in row.items() if "[s]" in key]
    assert len(seconds) == 5
    assert min(seconds) >= 0
    assert row["batch [s]"] > 0
    assert row["step [s]"] > 0
    assert row["nodes"] <= 1797


def test_the_loss_of_a_batch_is_that_of_its_seeds():
    """The other nodes have no say: their labels may be anything."""
    data = graph_data(digits_graph())
    model = CASES[0].network(data).eval()
    batch = next(iter(CASES[0].make(data, 1)))
    before = loss_of(model, batch)
    batch.y[batch.batch_size :] = 0
    assert torch.equal(loss_of(model, batch), before)
    batch.y[: batch.batch_size] = 0
    assert not torch.equal(loss_of(model, batch), before)


def test_published_batches_are_made_in_less_time_than_a_step():
    path = ROOT / "results" / "published" / "loading.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["loader"] for row in rows] == [case.name for case in CASES]
    for row in rows:
        steps = [float(row["step [s]"]), float(row["step, 2 bits [s]"])]
        assert float(row["batch [s]"]) < min(steps)
        assert float(row["longest wait [s]"]) < min(steps)
