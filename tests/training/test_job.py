import json

import pytest
import torch

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.training.job import Job

GRAPH = synthetic_graph(num_nodes=20, num_edges=50)


def test_a_job_goes_to_a_device_with_all_that_it_brings(tmp_path):
    def boundaries_of(bits, size):
        return tuple(range(2**bits))

    job = Job(GRAPH, boundaries_of, "0123", 7, tmp_path)
    moved = job.on("cpu")
    assert moved.device == torch.device("cpu")
    assert moved.graph.features is GRAPH.features, "nothing is copied where it lies"
    for name in ("boundaries_of", "source_digest", "threads", "partial_dir"):
        assert getattr(moved, name) is getattr(job, name)
    with pytest.raises(ValueError, match="auto, cpu or cuda, got 'tpu'"):
        job.on("tpu")


def test_provenance_names_the_device_the_threads_and_the_sources():
    provenance = Job(GRAPH, source_digest="0123", threads=7).provenance()
    assert provenance["device"] == "cpu"
    assert (provenance["threads"], provenance["source_digest"]) == (7, "0123")
    assert "torch" in provenance["versions"]
    job = Job(GRAPH)
    assert json.loads(job.provenance_text())["threads"] == torch.get_num_threads()


def test_parts_are_kept_only_where_a_folder_is_given(tmp_path):
    assert Job(GRAPH).part("seed3") is None
    assert Job(GRAPH, partial_dir=tmp_path).part("seed3") == tmp_path / "seed3.nc"
