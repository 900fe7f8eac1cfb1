"""The parts of `make gpu` on a CPU, where nothing differs unless it is made to."""

from dataclasses import replace

import pytest
import torch

from pipeline_src.gnn import aggregation as aggregations
from pipeline_src.gnn.aggregation import gcn_aggregation, mean_aggregation
from pipeline_src.graphs.graph import check_graph
from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.measuring.gpu import agreement, kernels, lean_agreement, steps
from pipeline_src.measuring.gpu.aggregation import COLUMNS as OF_AGGREGATION
from pipeline_src.measuring.gpu.aggregation import (
    WIDTHS,
    compare_aggregations,
    look_at_aggregation,
)
from pipeline_src.measuring.gpu.agreement import codes_of, compare_codes
from pipeline_src.measuring.gpu.clock import Deadline, DeviceClock, Timed
from pipeline_src.measuring.gpu.graphs import drawn_graph
from pipeline_src.measuring.gpu.kernel_calls import LEAN_OPERATIONS
from pipeline_src.measuring.gpu.results import Rows, read_rows
from pipeline_src.measuring.gpu.summary import faults

CPU = torch.device("cpu")
SIZES = GraphSizes(200, 1600, 12, 4, 90, 30)
HOUR = 3600.0


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- graphs ---------------------------------------------------------------------------


def test_a_drawn_graph_has_its_counts_and_no_loops_and_repeats_itself():
    graph = drawn_graph("drawn", SIZES, CPU)
    check_graph(graph)
    assert graph.sizes == SIZES
    assert graph.num_classes == SIZES.num_classes
    counts = graph.adjacency.row_pointer.diff()
    rows = torch.arange(200).repeat_interleave(counts)
    assert not (rows == graph.adjacency.column).any()
    again = drawn_graph("drawn", SIZES, CPU).adjacency.column
    assert torch.equal(again, graph.adjacency.column)


def test_degrees_of_a_drawn_graph_have_a_heavy_tail():
    """The heaviest of N = 4,000 nodes is drawn N ** (-1/3) of the time, 6 %.

    Were nodes drawn evenly, the largest degree of mean 10 would hardly pass 30.
    """
    sizes = GraphSizes(4000, 40_000, 1, 2, 10, 10)
    degrees = drawn_graph("drawn", sizes, CPU).adjacency.degree
    assert degrees.max() > 20 * degrees.float().mean()
    heaviest = degrees.argsort(descending=True)[:20]
    assert heaviest.float().std() > 500  # they are anywhere among the nodes


def test_more_edges_than_half_of_all_pairs_are_refused_and_half_are_drawn():
    sizes = replace(SIZES, num_nodes=10, num_entries=2 * 22, num_train=3)
    sizes = replace(sizes, num_validation=3)
    assert drawn_graph("drawn", sizes, CPU).adjacency.num_entries == 44
    with pytest.raises(ValueError, match=r"10 nodes has at most 22 .* got 23"):
        drawn_graph("drawn", replace(sizes, num_entries=46), CPU)


# --- agreement ------------------------------------------------------------------------


def compared(monkeypatch, disturb, bits=2, even=True):
    """Compare with a device whose kernel sees or gives something else."""
    original = agreement.compress_blocks

    def compress_blocks(x, seed, bits, size, edges, compile):
        if compile == "the device":
            return disturb(original, x, seed, bits, size, edges)
        return original(x, seed, bits, size, edges, compile)

    decompress = agreement.decompress_blocks
    monkeypatch.setattr(agreement, "compress_blocks", compress_blocks)
    monkeypatch.setattr(
        agreement,
        "decompress_blocks",
        lambda *given: decompress(*given[:-1], "false"),
    )
    return compare_codes(bits, even, 20_000, CPU, "the device")


def moved_by(share):
    """What a device makes of values that lie elsewhere, block ends excepted."""

    def disturb(original, x, seed, bits, size, edges):
        low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        moved = torch.minimum(x + share * (high - low), high)
        moved = torch.where((x > low) & (x < high), moved, x)
        return original(moved, seed, bits, size, edges, "false")

    return disturb


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_moved_within_rounding_may_differ_and_no_further(
    monkeypatch, bits, even
):
    """Half of the bound makes no wrong code; 512 times the bound makes some.

    It carries 2**-10 of 20,000 values over an edge at 2 bits, and more at others.
    """
    near = compared(monkeypatch, moved_by(agreement.CLOSE / 2), bits, even)
    assert near["wrong_codes"] == 0
    assert near["differing_codes"] <= near["beside_an_edge"]
    if bits == 8:
        assert near["differing_codes"] > 0
    monkeypatch.undo()
    far = compared(monkeypatch, moved_by(2.0**-10), bits, even)
    assert far["wrong_codes"] > 0
    assert far["differing_metadata"] == 0


def test_a_wrong_code_a_wrong_scale_and_a_wrong_value_are_faults(monkeypatch):
    def disturb(original, x, seed, bits, size, edges):
        packed, zero_point, scale = original(x, seed, bits, size, edges, "false")
        packed[3, 5] ^= 0b1000_0000
        return packed, zero_point, scale * 2

    found = compared(monkeypatch, disturb)
    assert found["wrong_codes"] == found["differing_codes"] == 1
    assert found["differing_metadata"] == 20_000 // agreement.BLOCK_SIZE
    monkeypatch.setattr(
        agreement,
        "decompress_blocks",
        lambda *given, original=agreement.decompress_blocks: (
            original(*given) * (1 + 2.0**-20 * (given[-1] == "the device"))
        ),
    )
    found = compare_codes(2, True, 20_000, CPU, "the device")
    assert found["decoded_difference_over_bound"] > 1
    text = {name: str(value) for name, value in found.items()}
    (fault,) = faults("agreement", [text])
    assert "1 codes and 78 zero points or scales are wrong" in fault


def test_codes_stand_in_the_order_of_values():
    """Code j of word w is value 2 j + w of a block of 8 in two bytes."""
    codes = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0]], dtype=torch.uint8)
    packed = sum(codes[:, 2 * j : 2 * j + 2] << 2 * j for j in range(4))
    assert torch.equal(codes_of(packed, 2), codes)


LEAN = (160, 24)


def test_leans_kernels_agree_with_themselves(tmp_path):
    rows = Rows(tmp_path / "lean_agreement.csv", lean_agreement.COLUMNS)
    plan = {"shape": LEAN, "compile": False}
    left = lean_agreement.compare_devices(rows, "cpu", CPU, Deadline(HOUR), **plan)
    assert left == []
    found = read_rows(rows.path)
    assert [row["bits"] for row in found] == ["2", "4", "8", "1"]
    assert not faults("lean_agreement", found)
    left = lean_agreement.compare_devices(rows, "cpu", CPU, Deadline(-1.0), **plan)
    assert left == ["2 bits", "4 bits", "8 bits", "1 bits"]


@pytest.mark.parametrize("wrong", ["codes", "ends", "h", "output", "gradient", "sums"])
def test_a_wrong_bit_of_leans_is_a_fault(wrong, monkeypatch):
    """The last bit of one value; of a sum, four times what its order may move."""
    original = lean_agreement._results

    def disturbed(bits, y, gradient, norm, sums, device, compile):
        codes, found = original(bits, y, gradient, norm, sums, device, False)
        if compile and wrong == "sums":
            found["sums"][1, 3] += 8 * len(y) * 2.0**-24 * len(y)
        elif compile:
            of = found[wrong].view(-1)
            (of if of.dtype == torch.uint8 else of.view(torch.int32))[37 % len(of)] ^= 1
        return codes, found

    monkeypatch.setattr(lean_agreement, "_results", disturbed)
    found = lean_agreement.compare_lean(2, LEAN, CPU, True)
    counts = {one: found[f"differing_{one}"] for one in lean_agreement.EXACT}
    assert counts == {one: int(one == wrong) for one in lean_agreement.EXACT}
    assert (found["sums_difference_over_bound"] > 1) == (wrong == "sums")
    text = {name: str(value) for name, value in found.items()}
    (fault,) = faults("lean_agreement", [text])
    assert "lean, 2 bits" in fault


# --- aggregation ----------------------------------------------------------------------


def compared_maps(other=lambda aggregation: aggregation):
    adjacency = drawn_graph("drawn", SIZES, CPU).adjacency
    aggregation = gcn_aggregation(adjacency)
    terms = int(adjacency.degree.max()) + 19
    return compare_aggregations(other(aggregation), aggregation, 8, terms, CPU)


def test_an_aggregation_like_the_cpus_has_no_faults():
    assert compared_maps() == {
        "library_shows_nan": 0,
        "bare_product_shows_nan": 0,
        "repetitions": 20,
        "differing_values": 0,
        "cpu_difference_over_bound": 0.0,
    }


def test_a_product_that_reads_its_output_is_told_from_one_that_shows_it(monkeypatch):
    addmm = torch.addmm

    def reading(given, matrix, dense, *, beta, out):
        return out.copy_(addmm(given * beta, matrix, dense))

    monkeypatch.setattr(torch, "addmm", reading)
    found = compared_maps()
    assert found["bare_product_shows_nan"] == found["library_shows_nan"] == 200 * 8
    monkeypatch.setattr(aggregations, "_OVERWRITES", set())
    found = compared_maps()
    assert (found["bare_product_shows_nan"], found["library_shows_nan"]) == (1600, 0)


def test_a_product_that_does_not_repeat_or_is_off_is_counted(monkeypatch):
    addmm, calls = torch.addmm, []

    def drifting(given, matrix, dense, *, beta, out):
        calls.append(1)
        addmm(given, matrix, dense, beta=beta, out=out)
        out[3, 5] *= 1 + len(calls) * 2.0**-23

    monkeypatch.setattr(torch, "addmm", drifting)
    assert compared_maps()["differing_values"] == 20
    monkeypatch.undo()
    found = compared_maps(lambda one: replace(one, matrix=one.matrix * 1.01))
    assert found["cpu_difference_over_bound"] > 1
    text = {name: str(value) for name, value in found.items()}
    labels = {"map": "gcn", "direction": "forward", "width": "8"}
    (fault,) = faults("aggregation", [{**labels, **text}])
    assert "times the bound of rounding away" in fault


def test_each_map_direction_and_width_gets_a_row(tmp_path):
    rows = Rows(tmp_path / "aggregation.csv", OF_AGGREGATION)
    left = look_at_aggregation(rows, "cpu", CPU, Deadline(HOUR), sizes=SIZES)
    assert left == []
    found = read_rows(rows.path)
    assert len(found) == 4 * len(WIDTHS)
    assert not faults("aggregation", found)
    rows = Rows(tmp_path / "aggregation.csv", OF_AGGREGATION)
    left = look_at_aggregation(rows, "cpu", CPU, Deadline(-1.0), sizes=SIZES)
    assert len(left) == 4 * len(WIDTHS)
    assert left[0] == "mean forward, width 128"
    assert read_rows(rows.path) == []


# --- kernels and steps ----------------------------------------------------------------


def test_kernels_get_rows_until_the_deadline(tmp_path, monkeypatch):
    settings = (("block-wise", 2, 64), ("lean", 4, 8))
    monkeypatch.setattr(kernels, "SETTINGS", settings)
    plan = {"shape": (40, 16), "compile": False, "warmup": 1, "repeats": 2}
    rows = Rows(tmp_path / "kernels.csv", kernels.COLUMNS)
    assert kernels.time_kernels(rows, "cpu", CPU, Deadline(HOUR), **plan) == []
    found = read_rows(rows.path)
    assert [row["operation"] for row in found[:4]] == [
        *("copy", "clone", "compress", "decompress")
    ]
    assert {row["samples"] for row in found} == {"2"}
    copy, compress = found[0], found[2]
    # 640 values in 10 blocks: a quarter of a byte each, and two bfloat16 per block.
    assert compress["kept_bytes"] == str(640 // 4 + 4 * 10)
    moved = int(compress["bytes"]) / float(compress["device_us"])
    copied = int(copy["bytes"]) / float(copy["device_us"])
    # Five digits of each are written.
    assert float(compress["share_of_copy"]) == pytest.approx(moved / copied, rel=2e-4)
    left = kernels.time_kernels(rows, "cpu", CPU, Deadline(-1.0), **plan)
    assert left == ["block-wise, 2 bits, blocks of 64", "lean, 4 bits, blocks of 8"]
    lean = {row["operation"]: row for row in found[4:]}
    assert tuple(lean) == ("copy", "clone", *LEAN_OPERATIONS)
    assert {row["samples"] for row in found[4:]} == {"2"}
    # 640 values in 5 blocks of 8 rows: half a byte each, and a word per block.
    assert {lean[name]["kept_bytes"] for name in LEAN_OPERATIONS} == {"340"}
    moved = {name: int(lean[name]["bytes"]) - 340 for name in LEAN_OPERATIONS}
    once, twice = 4 * 640, 8 * 640
    assert moved == {
        **{"encode": twice, "gradient_sums": once},
        **{"backpropagate": twice, "output": once},
    }


def trained(tmp_path, methods, monkeypatch, deadline=HOUR):
    rows = Rows(tmp_path / "training.csv", steps.COLUMNS)
    left = steps.time_training(
        rows,
        "cpu",
        CPU,
        Deadline(deadline),
        graph_name="drawn",
        sizes=SIZES,
        compile="false",
        methods=methods,
        models=[replace(steps.MODELS[0], num_layers=2, hidden=8)],
        repeats=2,
    )
    return left, read_rows(rows.path)


def test_steps_of_methods_stand_beside_fp32_and_beside_their_books(
    tmp_path, monkeypatch
):
    methods = (steps.FP32, steps.LEAN, steps.EXACT)
    left, rows = trained(tmp_path, methods, monkeypatch)
    assert left == []
    assert [row["state"] for row in rows] == ["measured"] * 3
    assert all(row["saved_mib"] == row["booked_saved_mib"] for row in rows)
    assert rows[0]["step_over_fp32"] == "1"
    ratio = float(rows[1]["step_ms"]) / float(rows[0]["step_ms"])
    assert float(rows[1]["step_over_fp32"]) == pytest.approx(ratio, rel=2e-4)


def test_a_method_that_fails_or_does_not_fit_leaves_the_others(tmp_path, monkeypatch):
    class Failing(steps.Trainer):
        def __init__(self, spec, graph, boundaries_of, seed):
            if spec.method is steps.EXACT:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 TiB\nmore")
            if spec.method is steps.LEAN:
                raise RuntimeError("illegal memory access")
            super().__init__(spec, graph, boundaries_of, seed)

    monkeypatch.setattr(steps, "Trainer", Failing)
    methods = (steps.EXACT, steps.LEAN, steps.FP32)
    _, rows = trained(tmp_path, methods, monkeypatch)
    states = {row["method"]: row["state"] for row in rows}
    assert states == {"exact": "does not fit", "lean2": "failed", "fp32": "measured"}
    assert float(rows[2]["step_ms"]) > 0
    assert faults("training", rows) == ["sage-3x128 lean2 failed"]
    notes = [row["note"] for row in read_rows(tmp_path / "notes.csv")]
    assert notes == [
        "does not fit: CUDA out of memory. Tried 9 TiB",
        "failed: RuntimeError: illegal memory access",
    ]


def test_a_graph_that_does_not_fit_is_a_row(tmp_path, monkeypatch):
    def drawn(name, sizes, device):
        raise torch.OutOfMemoryError("no")

    plan = {"graph_name": "large", "sizes": SIZES, "compile": "false", "repeats": 1}
    small = replace(steps.LARGE_MODEL, num_layers=2, hidden=8)
    monkeypatch.setattr(steps, "LARGE_MODEL", small)
    rows = Rows(tmp_path / "products.csv", steps.COLUMNS)
    assert steps.fit_large_graph(rows, "cpu", CPU, Deadline(HOUR), **plan) == []
    assert {row["state"] for row in read_rows(rows.path)} == {"measured"}
    assert len(read_rows(rows.path)) == len(steps.LARGE_METHODS)
    left = steps.fit_large_graph(rows, "cpu", CPU, Deadline(-1.0), **plan)
    assert left == ["lean2", "exact", "fp32"]
    monkeypatch.setattr(steps, "drawn_graph", drawn)
    rows = Rows(tmp_path / "products.csv", steps.COLUMNS)
    steps.fit_large_graph(rows, "cpu", CPU, Deadline(HOUR), **plan)
    assert [row["state"] for row in read_rows(rows.path)] == ["does not fit"]


def test_a_column_that_no_file_has_is_refused(tmp_path):
    rows = Rows(tmp_path / "rows.csv", ["one", "two"])
    with pytest.raises(ValueError, match=r"rows.csv has no column \['three'\]"):
        rows.add({"one": 1, "three": 3})
    rows.add({"two": 2.5})
    assert read_rows(rows.path) == [{"one": "", "two": "2.5"}]


# --- on a GPU -------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["true", "false"], ids=["compiled", "plain"])
@pytest.mark.parametrize(("bits", "even"), agreement.SETTINGS)
def test_a_gpu_makes_the_codes_of_a_cpu(bits, even, compile):
    """But for values within rounding of an edge; metadata may not differ at all."""
    found = compare_codes(bits, even, 4_000_000, torch.device("cuda"), compile)
    assert faults("agreement", [{name: str(one) for name, one in found.items()}]) == []


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("bits", lean_agreement.SETTINGS)
def test_a_gpu_gives_leans_bits(bits, compile):
    shape, cuda = lean_agreement.ARXIV_RUN, torch.device("cuda")
    found = lean_agreement.compare_lean(bits, shape, cuda, compile)
    text = {name: str(one) for name, one in found.items()}
    assert faults("lean_agreement", [text]) == []


@pytest.mark.gpu
def test_an_aggregation_on_a_gpu_overwrites_nan():
    """Whether it repeats bit for bit is not known, and is counted by the command."""
    adjacency = drawn_graph("drawn", SIZES, CPU).adjacency
    terms = int(adjacency.degree.max()) + 19
    for make in (mean_aggregation, gcn_aggregation):
        for width in (1, 40, 128):
            one, other = make(adjacency.to("cuda")), make(adjacency)
            found = compare_aggregations(one, other, width, terms, torch.device("cuda"))
            assert found["library_shows_nan"] == 0
            assert found["cpu_difference_over_bound"] <= 1


@pytest.mark.gpu
def test_a_graph_drawn_on_a_gpu_is_a_graph():
    graph = drawn_graph("drawn", SIZES, torch.device("cuda"))
    assert graph.features.device.type == graph.adjacency.column.device.type == "cuda"
    check_graph(graph.to("cpu"))
    assert graph.sizes == SIZES


@pytest.mark.gpu
def test_launches_are_counted_and_small_calls_are_timed_ahead_of_the_device():
    """An addition is one kernel, which takes a GPU less than a millisecond."""
    x = torch.zeros(1000, device="cuda")
    x.add_(1.0)
    assert steps.count_launches(lambda: x.add_(1.0)) == 1
    clock, timed = DeviceClock(x.device), Timed({}, [lambda: x.add_(1.0)], 0)
    for _ in range(3):
        clock.sample(timed)
    assert all(0 < seconds < 1e-3 for seconds in timed.device_seconds)
    assert timed.host_bound == 0
