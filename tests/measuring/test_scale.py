"""The books behind the plan for a large graph are right of a small one, to the byte."""

from pathlib import Path

import pytest
import rank_cases
from rank_cases import NODES, WIDTH

from pipeline_src.distributed.jobs.local import run_on_ranks
from pipeline_src.distributed.parts import cut
from pipeline_src.distributed.wire import Wire
from pipeline_src.measuring.scale import (
    PartSizes,
    even_part,
    kept_tensors,
    resident_tensors,
    sent_bytes,
    summed_bytes,
    table,
)
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.spec import MethodSpec

ROOT = Path(__file__).resolve().parents[2]
GRAPH = rank_cases.planted()
CODED = MethodSpec("m", "m", "exact", 2, 2, 4)


def sizes_of(part):
    return PartSizes(
        num_own=part.num_own,
        num_halo=part.num_halo,
        num_sent=part.sent.numel(),
        num_inside=part.inside_column.numel(),
        num_across=part.across_column.numel(),
        num_features=part.num_features,
        num_in_splits=tuple(index.numel() for index in part.splits.values()),
    )


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("bits", [32, 2])
def test_books_are_what_ranks_hold_keep_and_send(layer, bits):
    """Parts of uneven size, one of them a single node, at three layers."""
    run = rank_cases.spec(layer, dropout=0.5)
    methods = [run.method, CODED]
    found = run_on_ranks(rank_cases.hold, 3, "planted", "uneven", run, methods, bits)
    parts = list(cut(GRAPH, rank_cases.uneven(3), 3))
    sent = 0
    for one, part in zip(found, parts, strict=True):
        sizes = sizes_of(part)
        resident = map(allocated_bytes, resident_tensors(sizes, layer))
        assert one["resident"] == sum(resident)
        for method, kept in zip(methods, one["kept"], strict=True):
            book = kept_tensors(run.model, method, sizes)
            assert kept == sum(map(allocated_bytes, book)), method
        assert one["summed"] == summed_bytes(run.model, WIDTH, GRAPH.num_classes)
        sent += one["sent"]
    num_halo = sum(part.num_halo for part in parts)
    assert sent == sent_bytes(run.model, Wire(bits), num_halo, GRAPH.num_classes)


def test_even_parts_hold_the_whole_graph_between_them():
    part = even_part(GRAPH.sizes, 3, 0.5)
    assert part.num_own == NODES // 3
    assert part.num_inside + part.num_across == -(-GRAPH.sizes.num_entries // 3)
    assert part.num_halo == part.num_sent == NODES // 6


def test_the_published_plan_is_what_the_books_say():
    path = ROOT / "results" / "published" / "scale.csv"
    assert path.read_text(encoding="utf-8") == table()
