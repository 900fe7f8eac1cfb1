"""The table of compiled models, on a graph that takes a second."""

import pytest
import torch

from pipeline_src.measuring import compiled_models


@pytest.mark.slow
def test_a_row_tells_what_codes_save(monkeypatch):
    monkeypatch.setattr(compiled_models, "GRAPH", "digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = compiled_models.measure(bits=2, steps=1, draws=2)
    finally:
        torch.set_num_threads(threads)
        torch.compiler.reset()
    assert row["forward equal"] is True
    assert (
        0 < row["share"] < 0.3
    )  # nothing wide is kept whole: eight bits of 32 at most
    assert 0 < float(row["squared gradient error"]) < 1
