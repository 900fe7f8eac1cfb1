"""How many ranks a graph needs, and what they send: a plan on paper, from byte books.

    python -m pipeline_src.measuring.scale results/published/scale.csv

Nothing is trained. The books are those that tests compare with a real part, a real step
and real messages of a small graph, to the byte (tests/measuring/test_scale.py):

    resident    a part and its aggregation in both directions, and, for GraphSAGE, the
                aggregation of features
    kept        activations for backward, of the nodes that a rank owns
    sums        gradients of parameters, and statistics of BatchNorm
    sent        rows of the halo, once forward and once back for each hidden layer

What no book knows is how well a graph can be cut. Halo rows per own node, and the share
of edges between ranks, are assumptions: columns of the table.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_src.distributed.wire import Wire
from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.measuring.byte_books import network_tensors
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.spec import MethodSpec, ModelSpec

GIB = 2**30
# Counts of Open Graph Benchmark; 1,615,685,872 citations, each taken both ways. Pairs
# that cite each other would count twice, so there are a few less.
PAPERS100M = GraphSizes(111_059_956, 2 * 1_615_685_872, 128, 172, 1_207_179, 125_265)
NUM_TEST = 214_338
MODEL = ModelSpec("sage-3x128", "sage", 3, 128, 0.5, True)
FULL = MethodSpec("fp32", "FP32", "full")
CODED = MethodSpec("block64", "G/R = 64", "exact", 2, 8, 64)
RANKS = (8, 32, 128)
# ASSUME: how well parts are cut. Ours with METIS, of a synthetic graph of 30,000 nodes
# in 4 parts, is in results/published/ranks.csv.
HALO_ROWS = (0.5, 1.0, 2.0)  # per own node
CUT_SHARE = 0.3  # of edges


@dataclass(frozen=True)
class PartSizes:
    """Counts of one part that memory depends on."""

    num_own: int
    num_halo: int
    num_sent: int  # rows in other halos
    num_inside: int  # edges between own nodes
    num_across: int  # edges from halo nodes
    num_features: int
    num_in_splits: tuple[int, int, int]  # own nodes


def resident_tensors(part: PartSizes, layer: str) -> Iterator[int]:
    """Bytes of each tensor that a rank holds from the first step to the last."""
    nodes, known = part.num_own, part.num_own + part.num_halo
    yield from [8 * nodes] * 2  # numbers in the whole graph, labels
    yield 4 * nodes * part.num_features
    yield from (8 * count for count in part.num_in_splits)
    yield 4 * known  # degree
    yield known  # has_loop
    yield 8 * part.num_sent
    for num_edges, num_senders in (
        (part.num_inside, nodes),
        (part.num_across, part.num_halo),
    ):
        yield 4 * (nodes + 1)  # rows
        yield 4 * (num_senders + 1)  # rows of the transpose
        yield from [4 * num_edges] * 4  # columns and weights, both ways
    if layer == "sage":
        yield 4 * nodes * part.num_features  # their aggregation
    else:
        yield 4 * nodes  # the weight of a node itself


def kept_tensors(model: ModelSpec, method: MethodSpec, part: PartSizes) -> list[int]:
    """Bytes of each tensor that one rank keeps for backward."""
    tensors = list(network_tensors(model, method, part.num_own, part.num_features))
    if method.policy == "full" and model.layer == "sage":
        tensors.remove(4 * part.num_own * part.num_features)  # resident already
    return tensors


def sent_bytes(model: ModelSpec, wire: Wire, num_halo: int, num_classes: int) -> int:
    """Bytes of all messages of one step, for halos of so many rows together."""
    widths = [model.hidden] * (model.num_layers - 1)
    if model.layer == "gcn":
        widths.append(num_classes)
    return 2 * num_halo * sum(map(wire.row_bytes, widths))


def summed_bytes(model: ModelSpec, num_features: int, num_classes: int) -> int:
    """Bytes that a rank gives to sums in one step: gradients, statistics, the loss.

    BatchNorm gives sums, a count, squares, and two sums in backward, all as float64.
    """
    widths = [num_features, *[model.hidden] * (model.num_layers - 1), num_classes]
    matrices = 2 if model.layer == "sage" else 1
    parameters = sum(
        matrices * inputs * outputs + outputs
        for inputs, outputs in itertools.pairwise(widths)
    )
    num_norms = model.num_layers - 1 if model.batch_norm else 0
    parameters += num_norms * 2 * model.hidden
    return 4 * parameters + num_norms * 8 * (4 * model.hidden + 1) + 4


def even_part(sizes: GraphSizes, num_ranks: int, halo_rows: float) -> PartSizes:
    """The part of a rank, where all are alike; CUT_SHARE of edges are across."""
    num_own = math.ceil(sizes.num_nodes / num_ranks)
    num_edges = math.ceil(sizes.num_entries / num_ranks)
    num_halo = round(halo_rows * num_own)
    splits = (sizes.num_train, sizes.num_validation, NUM_TEST)
    train, validation, test = (math.ceil(count / num_ranks) for count in splits)
    return PartSizes(
        num_own=num_own,
        num_halo=num_halo,
        num_sent=num_halo,
        num_inside=num_edges - round(CUT_SHARE * num_edges),
        num_across=round(CUT_SHARE * num_edges),
        num_features=sizes.num_features,
        num_in_splits=(train, validation, test),
    )


def plan(sizes: GraphSizes, model: ModelSpec) -> Iterator[dict[str, Any]]:
    """A row for each number of ranks and each assumption."""
    for num_ranks, halo_rows in itertools.product(RANKS, HALO_ROWS):
        part = even_part(sizes, num_ranks, halo_rows)

        def per_rank(bits: int, part: PartSizes = part) -> float:
            return sent_bytes(model, Wire(bits), part.num_halo, sizes.num_classes) / GIB

        yield {
            "ranks": num_ranks,
            "assumed halo rows per node": halo_rows,
            "nodes of a rank": part.num_own,
            "resident [GiB]": _gib(resident_tensors(part, model.layer)),
            "kept, FP32 [GiB]": _gib(kept_tensors(model, FULL, part)),
            "kept, 2 bits [GiB]": _gib(kept_tensors(model, CODED, part)),
            "a halo of 128 [GiB]": round(4 * 128 * part.num_halo / GIB, 2),
            "sent by a rank, FP32 [GiB]": round(per_rank(32), 2),
            "sent by a rank, 2 bits [GiB]": round(per_rank(2), 2),
            "sums of a rank [MiB]": round(
                summed_bytes(model, sizes.num_features, sizes.num_classes) / 2**20, 2
            ),
            "sent by all, FP32 [GiB]": round(num_ranks * per_rank(32), 1),
            "sent by all, 2 bits [GiB]": round(num_ranks * per_rank(2), 1),
        }


def _gib(tensors: Iterator[int] | list[int]) -> float:
    return round(sum(map(allocated_bytes, tensors)) / GIB, 2)


def table() -> str:
    """The plan for papers100M, CSV."""
    return pd.DataFrame(plan(PAPERS100M, MODEL)).to_csv(index=False)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    write_whole(parser.parse_args().table, table())


if __name__ == "__main__":
    main()
