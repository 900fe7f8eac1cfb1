"""Tables say what a person with pencil and paper finds in the same records."""

import csv
import io
import json

import numpy as np
import pytest
import xarray as xr
from made_up_records import (
    ABLATION,
    BENCHMARK,
    METHODS,
    MIB,
    PUBLISHED,
    made_up_benchmark,
    made_up_boundaries,
    made_up_collection,
    made_up_distributions,
    made_up_features,
    made_up_measurement,
    made_up_spec,
)

from pipeline_src.collecting.runs import collect_runs
from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.records.datasets import run_record, write_dataset
from pipeline_src.report.tables.ablation import ablation_table
from pipeline_src.report.tables.accuracy import accuracy_table, paired_interval
from pipeline_src.report.tables.boundaries import boundaries_table
from pipeline_src.report.tables.byte_books import byte_books_table
from pipeline_src.report.tables.distributions import distribution_table
from pipeline_src.report.tables.features import (
    feature_table,
    search_table,
    selected_table,
)
from pipeline_src.report.tables.memory import memory_table
from pipeline_src.report.tables.table import NOT_MEASURED, to_csv, to_markdown
from pipeline_src.report.tables.training import training_table
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec


def collect(folder, accuracies, epoch_time=0.5):
    """Runs with given accuracies: method -> seed -> accuracy."""
    paths = []
    for method, by_seed in accuracies.items():
        spec = made_up_spec(method, seeds=list(by_seed))
        scalars = {"test_accuracy": list(by_seed.values()), "epoch_time": epoch_time}
        paths.append(folder / f"{method}.nc")
        write_dataset(
            run_record(json.dumps(spec), {}, spec["seeds"], scalars, {}), paths[-1]
        )
    return collect_runs(paths)


def test_accuracy_against_numbers_worked_by_hand(tmp_path):
    """Mean 70, std 10; differences -1, -2, -3: mean -2, std 1, t(0.975, 2) = 4.3027."""
    fp32 = {0: 0.6, 1: 0.7, 2: 0.8}
    exact = {0: 0.59, 1: 0.68, 2: 0.77}
    table = accuracy_table(collect(tmp_path, {"fp32": fp32, "exact": exact}))
    first, second = (row for _, row in table.values.iterrows())
    assert (first["method"], second["method"]) == ("FP32", "EXACT")
    assert first["test accuracy mean [%]"] == pytest.approx(70)
    assert first["test accuracy std [%]"] == pytest.approx(10)
    assert second["difference to FP32 [points]"] == pytest.approx(-2)
    half = 4.302652729749464 / np.sqrt(3)
    assert second["interval low [points]"] == pytest.approx(-2 - half)
    assert second["interval high [points]"] == pytest.approx(-2 + half)
    assert second["exceeds seed noise"] == "no"  # -2 + 2.48 > 0
    assert second["epochs/s"] == pytest.approx(2)
    assert table.shown["test accuracy [%]"].tolist()[0] == "70.00 ± 10.00"
    assert table.shown["difference to FP32 [points]"].tolist() == ["–", "-2.00"]


def test_a_steady_loss_exceeds_the_seed_noise_although_the_spreads_overlap(tmp_path):
    """Pairing by seed sees -1 ± 0.1 points through a spread of 10 points."""
    fp32 = {0: 0.6, 1: 0.7, 2: 0.8}
    exact = {0: 0.590, 1: 0.691, 2: 0.789}
    table = accuracy_table(collect(tmp_path, {"fp32": fp32, "exact": exact}))
    assert table.values["exceeds seed noise"].tolist() == ["–", "yes"]


def test_differences_pair_equal_seeds_only(tmp_path):
    """Seeds 1 and 2 are common: (0.5 - 0.7, 0.6 - 0.8) = -20 points, twice."""
    runs = {"fp32": {0: 0.1, 1: 0.7, 2: 0.8}, "exact": {2: 0.6, 1: 0.5, 3: 0.9}}
    row = accuracy_table(collect(tmp_path, runs)).values.iloc[1]
    assert row["paired seeds"] == 2
    assert row["difference to FP32 [points]"] == pytest.approx(-20)


def test_one_seed_or_no_baseline_gives_no_interval(tmp_path):
    alone = accuracy_table(collect(tmp_path, {"exact": {0: 0.5, 1: 0.6}}))
    assert alone.shown["difference to FP32 [points]"].tolist() == [NOT_MEASURED]
    single = accuracy_table(collect(tmp_path, {"fp32": {0: 0.5}, "exact": {0: 0.4}}))
    row = single.shown.iloc[1]
    assert row["difference to FP32 [points]"] == "-10.00"
    assert row["95 % interval [points]"] == NOT_MEASURED
    assert row["exceeds seed noise"] == NOT_MEASURED


def test_interval_covers_the_truth_as_often_as_it_says():
    """Of n intervals 95 % cover the mean; a count 5 standard errors off is wrong."""
    generator = np.random.default_rng(0)
    n = 2000
    ends = [paired_interval(generator.normal(1.0, 2.0, size=5))[1:] for _ in range(n)]
    covered = sum(low <= 1.0 <= high for low, high in ends)
    assert abs(covered - 0.95 * n) <= 5 * np.sqrt(n * 0.95 * 0.05)


def test_memory_against_the_published_numbers(tmp_path):
    """Ratios to FP32 and EXACT, and -96.7 % and -16.1 % as the abstract claims."""
    table = memory_table(made_up_collection(tmp_path))
    rows = table.values[table.values["graph"] == "arxiv_shape"].set_index("method")
    assert len(rows) == len(METHODS)
    assert rows.loc["EXACT", "saved [MiB]"] == pytest.approx(30.47)
    assert rows.loc["G/R = 64", "FP32 / saved"] == pytest.approx(786.22 / 25.56)
    assert rows.loc["G/R = 64", "EXACT / saved"] == pytest.approx(30.47 / 25.56)
    assert rows.loc["FP32", "FP32 / saved"] == 1
    assert rows.loc["EXACT", "saved with loss side [MiB]"] == pytest.approx(44.47)
    assert 100 / rows.loc["G/R = 64", "FP32 / saved"] - 100 == pytest.approx(
        -96.7, abs=0.1
    )


def test_speed_is_the_median_of_the_repeats(tmp_path):
    """Times 1, 2, 4, 5, 8 s: median 1/4, least 1/8, most 1; FP32 twice as fast."""
    measurement = made_up_measurement(methods=("fp32", "exact", "block2"))
    times = np.array([1.0, 2.0, 4.0, 5.0, 8.0])
    measurement["epoch_time"][1] = times
    measurement["epoch_time"][0] = times / 2
    write_dataset(measurement, tmp_path / "m.nc")
    table = memory_table(collect_runs([], [tmp_path / "m.nc"]))
    row = table.values.iloc[1]
    assert (row["epochs/s median"], row["epochs/s min"], row["epochs/s max"]) == (
        0.25,
        0.125,
        1.0,
    )
    assert row["speed / FP32"] == 0.5
    assert table.shown["epochs/s (min … max)"].tolist() == [
        "0.500 (0.250 … 2.00)",
        "0.250 (0.125 … 1.00)",
        NOT_MEASURED,
    ]


def test_a_graph_not_measured_alone_shows_bytes_of_training_but_no_speed(tmp_path):
    """Training runs share the machine: their bytes are right, their seconds are not."""
    collected = made_up_collection(tmp_path)
    assert np.isfinite(collected["epoch_time"].values).all()
    table = memory_table(collected)
    rows = table.values[table.values["graph"] == "digits"]
    assert rows["measured"].unique().tolist() == ["in training"]
    assert rows["saved [MiB]"].iloc[0] == pytest.approx(0.01 * PUBLISHED["fp32"])
    assert rows["saved with loss side [MiB]"].isna().all()
    speeds = ["epochs/s median", "epochs/s min", "epochs/s max", "speed / FP32"]
    assert rows[speeds].isna().all(axis=None)
    shown = table.shown[table.shown["graph"] == "digits"]
    assert set(shown["epochs/s (min … max)"]) == {NOT_MEASURED}


def test_rows_keep_the_order_of_the_configuration(tmp_path):
    methods = ("block64-vm", "fp32", "exact")
    collected = made_up_collection(tmp_path, methods=methods, graphs=("pubmed", "cora"))
    shown = accuracy_table(collected).shown
    assert shown["graph"].tolist() == ["pubmed"] * 3 + ["cora"] * 3
    assert shown["method"].tolist() == ["G/R = 64 + VM", "FP32", "EXACT"] * 2


def test_distributions_have_a_row_for_each_observed_sample():
    dataset = made_up_distributions()
    dataset["jensen_shannon"][0, 0, 0] = np.nan  # nothing was observed there
    dataset["variance_reduction_achieved"][1, 0, 0] = -0.08
    table = distribution_table([dataset])
    assert len(table.values) == 5 * 2 * 2 - 1
    row = table.shown.set_index(["epoch", "layer", "tensor", "projected"]).loc[
        ("1", "layer1", "aggregated", "no")
    ]
    assert row["JS clipped normal [bit]"] == "0.0040"
    assert row["variance reduction predicted [%]"] == "6.33"
    assert row["variance reduction achieved [%]"] == "-8.00"


def test_boundaries_list_known_sizes_and_leave_out_one_bit():
    table = boundaries_table(made_up_boundaries())
    assert table.values["bits"].unique().tolist() == [2, 4, 8]
    assert table.values["block size d"].unique().tolist() == [
        4,
        8,
        16,
        32,
        64,
        1024,
        4096,
    ]
    assert table.values["variance reduction [%]"].iloc[0] == pytest.approx(4)


def test_csv_and_markdown_agree_and_say_what_was_not_measured(tmp_path):
    table = memory_table(made_up_collection(tmp_path))
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) - 2 == len(rows) == len(table.values)
    by_method = {row["method"]: row for row in rows if row["graph"] == "arxiv_shape"}
    assert by_method["G/R = 2"]["epochs/s median"] == NOT_MEASURED
    assert float(by_method["EXACT"]["saved [MiB]"]) == 30.47
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_an_empty_table_says_so(tmp_path):
    page = to_markdown(distribution_table([]))
    assert "(not measured in this configuration)" in page
    collected = made_up_collection(tmp_path, methods=(), measured=True)
    assert accuracy_table(collected).values.empty


@pytest.mark.parametrize(
    ("mebibytes", "shown"), [(786.2214, "786.22"), (25.5, "25.50"), (0.30474, "0.3047")]
)
def test_small_graphs_keep_their_digits(tmp_path, mebibytes, shown):
    """Two decimals as published, but 0.3047 and 0.3021 MiB are not both 0.30."""
    measurement = made_up_measurement(methods=("fp32",))
    measurement["saved_memory"][:] = mebibytes * MIB
    write_dataset(measurement, tmp_path / "m.nc")
    table = memory_table(collect_runs([], [tmp_path / "m.nc"]))
    assert table.shown["saved [MiB]"].tolist() == [shown]


def test_exact_is_one_row_per_block_wherever_it_stands(tmp_path):
    """EXACT listed last is still what the others are compared with."""
    measurement = made_up_measurement(methods=("block2", "block64-vm", "exact"))
    write_dataset(measurement, tmp_path / "m.nc")
    ratios = memory_table(collect_runs([], [tmp_path / "m.nc"])).values["EXACT / saved"]
    np.testing.assert_allclose(ratios, [30.47 / 27.88, 30.47 / 25.56, 1])


def test_another_layout_is_compared_with_exact_at_its_bits(tmp_path):
    """It need not project, so the projection ratio cannot be what has to agree."""
    measurement = made_up_measurement(methods=("exact", "block64"))
    specs = json.loads(measurement.attrs["specs"])
    specs[1]["method"].update(policy="lean", projection_ratio=1)
    measurement.attrs["specs"] = json.dumps(specs)
    write_dataset(measurement, tmp_path / "m.nc")
    ratios = memory_table(collect_runs([], [tmp_path / "m.nc"])).values["EXACT / saved"]
    np.testing.assert_allclose(ratios, [1, 30.47 / 25.56])


def benchmark(folder, *arguments, **changes):
    record = made_up_benchmark(*arguments, **changes)
    write_dataset(record, folder / "b.nc")
    return collect_runs([], [folder / "b.nc"])


def test_training_gives_every_measured_number_and_the_ratio_to_eager(tmp_path):
    """Medians: 4.1 s eager, 1.24 s lean. Times are 0.97 to 1.05 of the median."""
    table = training_table(benchmark(tmp_path))
    csv_columns = to_csv(table).splitlines()[0].split(",")
    assert csv_columns[:12] == [
        *("graph", "model", "method", "saved_mib", "peak_mib", "resident_mib"),
        *("epoch_time_s", "epoch_time_ratio", "gradient_error", "gradient_bias"),
        *("gradient_bias_standard_error", "gradient_variance"),
    ]
    rows = table.values.set_index("method")
    labels = [label for label, *_ in BENCHMARK.values()]
    assert rows.index.tolist() == [one for one in labels if "without" not in one]
    lean = rows.loc["lean INT2"]
    assert lean["saved_mib"] == pytest.approx(11.4)
    assert lean["saved_with_loss_mib"] == pytest.approx(25.4)
    assert lean["peak_mib"] == pytest.approx(254.7)
    assert lean["resident_mib"] == pytest.approx(112.7)
    assert lean["epoch_time_s"] == pytest.approx(1.24)
    assert lean["epoch_time_min_s"] == pytest.approx(0.97 * 1.24)
    assert lean["epoch_time_max_s"] == pytest.approx(1.05 * 1.24)
    assert lean["epoch_time_ratio"] == pytest.approx(1.24 / 4.1)
    assert lean["gradient_error"] == pytest.approx(0.042)
    assert lean["first_step_time_s"] == pytest.approx(21.24)
    shown = table.shown.set_index("method").loc["lean INT2"]
    assert shown["time per epoch [s] (min … max)"] == "1.24 (1.20 … 1.30)"
    assert shown["time / PyG eager"] == "0.30"
    assert shown["gradient error"] == "4.2e-02"
    assert shown["of it bias"] == "1.1e-02 ± 8e-04"
    assert shown["of it variance"] == "3.2e-02"


def test_training_without_eager_or_time_or_error_says_so(tmp_path):
    """NaN for programs, words for readers; another graph's eager does not stand in."""
    first = made_up_benchmark("flickr_shape", "sage-2x256", ("pyg-eager", "exact"))
    second = made_up_benchmark(methods=("pyg-compiled", "lean2"))
    second["epoch_time"][1] = np.nan
    second["gradient_error"][1] = np.nan
    paths = [tmp_path / "1.nc", tmp_path / "2.nc"]
    for path, record in zip(paths, (first, second), strict=True):
        write_dataset(record, path)
    table = training_table(collect_runs([], paths))
    np.testing.assert_allclose(
        table.values["epoch_time_ratio"], [1, 2.5 / 4.1, np.nan, np.nan]
    )
    row = list(csv.DictReader(io.StringIO(to_csv(table))))[-1]
    for column in ("epoch_time_s", "epoch_time_ratio", "gradient_error"):
        assert np.isnan(float(row[column]))
    shown = table.shown.iloc[-1]
    assert shown["time per epoch [s] (min … max)"] == NOT_MEASURED
    assert shown["gradient error"] == NOT_MEASURED
    assert "NaN" not in to_markdown(table)


def test_ablation_compares_each_variant_with_its_full_layout(tmp_path):
    """Against the factors that the records were made up with."""
    rows = ablation_table(benchmark(tmp_path)).values
    assert rows["without"].tolist() == [
        "nothing",
        *(idea.replace("_", " ") for idea in ABLATION),
    ]
    expected = np.array([(0.0, 0.0, 1.0, 1.0), *ABLATION.values()])
    found = rows[
        [
            "saved_difference_mib",
            "peak_difference_mib",
            "epoch_time_ratio",
            "gradient_error_ratio",
        ]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_ablation_pairs_equal_settings_and_may_be_empty(tmp_path):
    """A variant at 2 bits is not compared with 4 bits; alone it has no row."""
    methods = ("lean4", "lean2-no-sided-codes", "exact")
    table = ablation_table(benchmark(tmp_path, methods=methods))
    assert table.values.empty
    assert "(not measured in this configuration)" in to_markdown(table)
    assert ablation_table(benchmark(tmp_path, methods=("lean2",))).values.empty


def test_a_projected_copy_does_not_part_a_variant_from_its_layout(tmp_path):
    record = made_up_benchmark(methods=("lean2", "lean2-no-rebuilt-input"))
    specs = json.loads(record.attrs["specs"])
    specs[1]["method"]["projection_ratio"] = 8
    record.attrs["specs"] = json.dumps(specs)
    write_dataset(record, tmp_path / "m.nc")
    assert len(ablation_table(collect_runs([], [tmp_path / "m.nc"])).values) == 2


def test_byte_books_count_from_shapes(tmp_path):
    """products_shape, 3 x 256 without BatchNorm: 16,481 MiB in full precision."""
    model = ModelSpec("sage", "sage", 3, 256, 0.5, batch_norm=False)
    training = TrainingSpec(1, 0.01, 0.0, None, "log_cross_entropy")
    methods = [
        MethodSpec("fp32", "FP32", "full"),
        MethodSpec("exact", "EXACT", "exact", 2, 8),
    ]
    specs = [
        RunSpec("products_shape", model, method, training, (0,)) for method in methods
    ]
    rows = byte_books_table(specs).values
    assert rows["num_nodes"].tolist() == [GRAPH_SIZES["products_shape"].num_nodes] * 2
    assert rows["saved_mib"].tolist() == pytest.approx([16_481, 447], abs=1)
    assert rows["compression_ratio"].tolist() == pytest.approx([1, 16_481 / 447], 0.01)
    assert (rows["saved_with_loss_mib"] > rows["saved_mib"]).all()
    relabelled = byte_books_table(specs, {"exact": "mine"}).values
    assert relabelled["method"].tolist() == ["FP32", "mine"]


FEATURE_COLUMNS = (
    "graph,model,hyperparameters,method,average_bits,nominal_ratio,packed_mib,"
    "packed_ratio,csr_ratio,accuracy_fp32,accuracy_fp32_tuned,accuracy,drop,drop_low,"
    "drop_high,drop_tuned,drop_tuned_low,drop_tuned_high,seeds"
)


def test_packed_features_against_numbers_worked_by_hand():
    """A drop of 0.2 points on each of 10 seeds: the interval is a point.

    FP32 gains 0.1 by tuning, so the drop to it is 0.3.
    """
    table = feature_table(made_up_features())
    assert to_csv(table).splitlines()[0] == FEATURE_COLUMNS
    assert table.values["method"].tolist() == ["ABS", "uniform 4"] * 3
    row = table.values.iloc[0]
    assert (row["graph"], row["model"], row["seeds"]) == ("cora", "gcn", 10)
    assert row["packed_ratio"] == pytest.approx(25)
    assert row["nominal_ratio"] == pytest.approx(1.2 * 25)
    assert row["packed_mib"] == pytest.approx(0.4)
    assert row["csr_ratio"] == pytest.approx(100)
    assert row["accuracy_fp32"] == pytest.approx(81.45)
    assert row["accuracy"] == pytest.approx(81.25)
    assert [row["drop"], row["drop_low"], row["drop_high"]] == pytest.approx([0.2] * 3)
    tuned = row[["drop_tuned", "drop_tuned_low", "drop_tuned_high"]].tolist()
    assert tuned == pytest.approx([0.3] * 3)
    assert row["accuracy_fp32_tuned"] == pytest.approx(81.55)
    shown = table.shown.iloc[0]
    assert shown["95 % interval to FP32 [points]"] == "+0.20 … +0.20"
    assert shown["95 % interval to FP32 tuned [points]"] == "+0.30 … +0.30"
    second = table.shown.iloc[1]
    assert second["drop to FP32 [points]"] == "+0.00"
    assert second["drop to FP32 tuned [points]"] == "+0.10"


def test_the_selection_is_a_row_per_place_and_their_mean():
    """What was fine-tuned stands for the method, where anything was."""
    features = made_up_features(places=(("cora", "gcn"), ("cora", "gat")))
    table = selected_table(features)
    assert table.values["graph"].tolist() == ["cora", "cora", "mean"]
    assert table.values["packed_ratio"].tolist() == pytest.approx([25] * 3)
    assert table.values["drop"].tolist() == pytest.approx([0.2] * 3)
    assert table.values["drop_tuned"].tolist() == pytest.approx([0.3] * 3)
    assert table.shown.iloc[-1][["FP32 [%]", "packed [MiB]", "seeds"]].eq("").all()
    assert "Method: ABS." in table.note
    tuned = features.assign_coords(
        method=features["method"].str.replace("uniform 4", "ABS tuned")
    )
    assert selected_table(tuned).values["drop"].tolist() == pytest.approx([0.0] * 3)


def joined(*parts):
    """Several made-up collections as one; xr.concat would join one dimension only."""
    return xr.merge(
        xr.concat([part.drop_dims(other) for part in parts], dim)
        for dim, other in (("evaluation", "measurement"), ("measurement", "evaluation"))
    )


def test_means_stand_with_and_without_computers_and_with_own_hyperparameters():
    """Drops of 0.2, 0.4 and 3 points; 0.5 with hyper-parameters of its own."""
    published = joined(
        made_up_features((("cora", "gcn"),)),
        made_up_features((("cora", "gat"),), drop=0.004),
        made_up_features((("computers", "gcn"),), drop=0.03),
    )
    own = made_up_features(
        (("computers", "gcn"),), hyperparameters="hidden 64", drop=0.005
    )
    table = selected_table(joined(published, own))
    names = ["graph", "hyperparameters"]
    assert table.values[names].iloc[2:].to_numpy().tolist() == [
        ["computers", "published"],
        ["computers", "hidden 64"],
        ["mean", "published"],
        ["mean without computers", "published"],
        ["mean", "own, else published"],
    ]
    drops = table.values[["drop", "drop_tuned"]].iloc[-3:]
    assert drops["drop"].tolist() == pytest.approx([3.6 / 3, 0.6 / 2, 1.1 / 3])
    assert (drops["drop_tuned"] - drops["drop"]).tolist() == pytest.approx([0.1] * 3)
    # Nothing to leave out, nothing of its own: one mean.
    assert len(selected_table(made_up_features()).values) == 3 + 1
    alone = made_up_features((("computers", "gcn"),))
    assert selected_table(alone).values["graph"].tolist() == ["computers", "mean"]


def test_what_was_not_tuned_has_no_drop_to_tuned_full_precision():
    features = made_up_features()
    features["measured_full_tuned_test_accuracy"].values[:] = np.nan
    shown = selected_table(features).shown
    assert shown["FP32 tuned [%]"].tolist() == [*["not measured"] * 3, ""]
    assert shown["drop to FP32 tuned [points]"].eq("not measured").all()
    assert shown["drop to FP32 [points]"].eq("+0.20").all()
    some = made_up_features()
    some["measured_full_tuned_test_accuracy"].values[:20] = np.nan  # the first place
    drops = selected_table(some).shown["drop to FP32 tuned [points]"].tolist()
    assert drops == ["not measured", "+0.30", "+0.30", "not measured"]


def test_a_single_seed_has_a_drop_without_an_interval():
    values = feature_table(made_up_features(num_seeds=1)).values
    assert values["drop"].tolist() == pytest.approx([0.2, 0.0] * 3)
    assert values[["drop_low", "drop_high"]].isna().all(axis=None)


def test_searches_list_every_evaluation_and_show_the_last():
    features = made_up_features()
    features["aim"].values[:12] = "max_memory"  # another question, another table
    table = search_table(features)
    assert len(table.values) == (3 * 4 - 1) * 12
    assert len(table.shown) == 3 * 4 - 1
    first = table.values.iloc[0]
    assert (first["strategy"], first["evaluation"]) == ("random", 1)
    assert first["best_packed_ratio"] == pytest.approx(1)
    assert first["accuracy_fp32"] == pytest.approx(80)
    ratio = table.values["best_packed_ratio"] * table.values["best_packed_mib"]
    assert ratio.to_numpy() == pytest.approx(32)
