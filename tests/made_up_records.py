"""Records with made-up values, in exactly the shape the rules write them."""

import json
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import stats

from pipeline_src.collecting.runs import collect_runs
from pipeline_src.records.datasets import (
    describe_provenance,
    measurement_record,
    run_record,
    write_dataset,
)

MIB = 2**20
LABELS = {"fp32": "FP32", "exact": "EXACT", "block64-vm": "G/R = 64 + VM"}
LAWS = ("uniform", "normal", "truncated_normal", "clipped_normal")
# MiB on arxiv-shaped data, of the order of the published ones.
PUBLISHED = {"fp32": 786.22, "exact": 30.47, "block2": 27.88, "block4": 26.60}
PUBLISHED |= {"block8": 25.95, "block16": 25.72, "block32": 25.60, "block64": 25.56}
PUBLISHED |= {"block64-vm": 25.56}
METHODS = tuple(PUBLISHED)
# name: label, saved [MiB], peak [MiB], epoch time [s], gradient error; on arxiv_shape
# of the order that such methods have.
BENCHMARK = {
    "pyg-eager": ("PyG eager", 1074.0, 1230.0, 4.1, 0.0),
    "pyg-compiled": ("PyG compiled", 952.0, 1105.0, 3.3, 3e-13),
    "pyg-bf16": ("PyG bfloat16", 640.0, 905.0, 3.9, 6e-5),
    "pyg-checkpointing": ("PyG checkpointing", 250.0, 780.0, 5.2, 2e-13),
    "pyg-budget": ("PyG budget 0.5", 540.0, 860.0, 3.6, 3e-13),
    "pyg-offload": ("PyG offload", 1074.0, 1230.0, 6.4, 0.0),
    "pyg-hooks8": ("PyG hooks INT8", 290.0, 820.0, 7.0, 4e-5),
    "pyg-hooks4": ("PyG hooks INT4", 155.0, 700.0, 7.3, 1.1e-2),
    "fp32": ("FP32", 786.22, 895.4, 3.7, 4e-13),
    "exact": ("EXACT", 30.42, 354.0, 2.5, 2.7),
    "block64": ("G/R = 64", 25.47, 350.4, 2.6, 3.1),
    "lean1": ("lean INT1", 6.2, 249.5, 1.2, 0.31),
    "lean2": ("lean INT2", 11.4, 254.7, 1.24, 0.042),
    "lean4": ("lean INT4", 21.8, 265.0, 1.3, 1.9e-3),
}
TECHNIQUES = {
    "pyg-compiled": "compiled",
    "pyg-bf16": "autocast",
    "pyg-checkpointing": "checkpointing",
    "pyg-budget": "budget",
    "pyg-offload": "offload",
    "pyg-hooks8": "quantized_hooks",
    "pyg-hooks4": "quantized_hooks",
}
# idea: what lean2 keeps more [MiB], holds more [MiB], its time and error times these.
ABLATION = {
    "transposed_aggregation": (8.2, 9.0, 0.92, 41.0),
    "resident_input": (5.4, 5.5, 1.1, 18.0),
    "regenerated_dropout": (5.2, 5.2, 0.97, 1.0),
    "rebuilt_input": (10.9, 11.0, 1.05, 1.2),
    "sided_codes": (5.2, 5.2, 1.01, 1.6),
    "chunked_backward": (0.0, 82.7, 1.2, 1.0),
}
BENCHMARK |= {
    f"lean2-no-{idea.replace('_', '-')}": (
        f"lean INT2 without {idea.replace('_', ' ')}",
        11.4 + kept,
        254.7 + held,
        1.24 * slower,
        0.042 * worse,
    )
    for idea, (kept, held, slower, worse) in ABLATION.items()
}
SCALED = {"nodes_10k": 1e4, "nodes_30k": 3e4, "nodes_100k": 1e5, "nodes_300k": 3e5}
SCALED |= {"nodes_1m": 1e6}


def made_up_spec(
    method="exact", graph="digits", model="sage-2x64", seeds=(0, 1, 2), epochs=20
):
    """A RunSpec as a plain dict."""
    fp32 = method == "fp32"
    digits = "".join(filter(str.isdigit, method.removeprefix("fp32")))
    hidden = int(model.partition("x")[2])
    return {
        "graph": graph,
        "model": {
            "name": model,
            "layer": model.partition("-")[0],
            "num_layers": int(model.partition("-")[2].partition("x")[0]),
            "hidden": hidden,
            "dropout": 0.5,
            "batch_norm": True,
        },
        "method": {
            "name": method,
            "label": LABELS.get(method, f"G/R = {digits}"),
            "policy": "full" if fp32 else "exact",
            "bits": 32 if fp32 else 2,
            "projection_ratio": 1 if fp32 else 8,
            "rows_per_block": int(digits or 1),
            "boundaries": "clipped_normal" if method.endswith("vm") else "even",
            "max_block_size": 1024,
            "layer_bits": [],
            "without": [],
            "technique": "eager",
            "memory_budget": 1.0,
        },
        "training": {
            "epochs": epochs,
            "learning_rate": 0.01,
            "weight_decay": 0.0,
            "gradient_clip": 0.5,
            "loss": "cross_entropy",
        },
        "seeds": list(seeds),
        "device": "auto",
        "compile": "auto",
    }


def made_up_provenance():
    return describe_provenance("0123abcd" * 8, "cpu", 2)


def made_up_run(spec):
    """A run that learns: loss falls and accuracy rises, a little less when lossy."""
    seeds, epochs = spec["seeds"], spec["training"]["epochs"]
    place = abs(hash_text(spec["graph"] + spec["method"]["name"]))
    generator = np.random.default_rng([place, *seeds])
    noise = generator.normal(size=(len(seeds), epochs))
    progress = 1 - np.exp(-np.arange(1, epochs + 1) / 6)
    best = 0.95 if spec["method"]["policy"] == "full" else 0.94
    accuracy = np.clip(0.1 + (best - 0.1) * progress + 0.01 * noise, 0, 1)
    curves = {
        "loss_curve": 2.3 * (1 - 0.9 * progress) + 0.02 * np.abs(noise),
        "train_accuracy_curve": np.minimum(accuracy + 0.02, 1),
        "validation_accuracy_curve": accuracy,
        "test_accuracy_curve": accuracy - 0.01,
    }
    at = accuracy.argmax(axis=1)
    scalars = {
        "test_accuracy": accuracy.max(axis=1) - 0.01,
        "validation_accuracy": accuracy.max(axis=1),
        "best_epoch": at + 1.0,
        "chance_accuracy": 0.102,
        "num_test_nodes": 540,
        "epoch_time": 0.02 + 0.001 * generator.random(len(seeds)),
        "saved_memory": 0.01 * MIB * PUBLISHED[spec["method"]["name"]],
        "peak_memory": 0.03 * MIB * PUBLISHED[spec["method"]["name"]] + MIB,
        "resident_memory": 0.6 * MIB,
    }
    return run_record(json.dumps(spec), made_up_provenance(), seeds, scalars, curves)


def made_up_measurement(
    graph="arxiv_shape",
    model="sage-3x128",
    methods=METHODS,
    timed=("fp32", "exact", "block64"),
):
    """Memory of every method and five epoch times of some."""
    specs = [made_up_spec(method, graph, model, seeds=(0,)) for method in methods]
    saved = np.array([PUBLISHED[method] for method in methods]) * MIB
    generator = np.random.default_rng(0)
    epoch_time = 2.0 + 0.1 * generator.random((len(methods), 5))
    for row, method in zip(epoch_time, methods, strict=True):
        row[:] = row * (1.3 if method != "fp32" else 1.0) if method in timed else np.nan
    scalars = {
        "saved_memory": saved,
        "saved_memory_with_loss": saved + 14 * MIB,
        "peak_memory": saved + 400 * MIB,
        "resident_memory": 106.5 * MIB,
    }
    texts = [json.dumps(spec) for spec in specs]
    return measurement_record(texts, made_up_provenance(), scalars, epoch_time)


def made_up_rival(method, graph, model):
    """A RunSpec as a plain dict of a method of BENCHMARK."""
    spec = made_up_spec("fp32", graph, model, seeds=(0,))
    policy = method.partition("-")[0].rstrip("0123456789")
    policy = {"fp": "full", "block": "exact"}.get(policy, policy)
    changes = {"name": method, "label": BENCHMARK[method][0], "policy": policy}
    if policy == "exact":
        rows = int(method.removeprefix("block")) if method != "exact" else 1
        changes |= {"bits": 2, "projection_ratio": 8, "rows_per_block": rows}
    if policy == "lean":
        changes |= {"bits": int(method[4]), "rows_per_block": 8}
        idea = method.partition("-no-")[2].replace("-", "_")
        changes |= {"without": [idea] if idea else []}
    changes |= {"technique": TECHNIQUES.get(method, "eager")}
    spec["method"].update(changes)
    return spec


def made_up_benchmark(
    graph="arxiv_shape", model="sage-3x128", methods=tuple(BENCHMARK), scale=1.0
):
    """Everything that is measured of some methods, bytes and seconds times scale."""
    _, saved, peak, time, error = zip(*map(BENCHMARK.get, methods), strict=True)
    spread = np.array([1.0, 0.97, 1.02, 1.05, 0.99])
    scalars = {
        "saved_memory": scale * MIB * np.array(saved),
        "saved_memory_with_loss": scale * MIB * (np.array(saved) + 14),
        "peak_memory": scale * MIB * np.array(peak),
        "resident_memory": scale * MIB * 112.7,
        "first_step_time": scale * np.array(time) + 20,
        "gradient_error": error,
        "gradient_bias": 0.25 * np.array(error),
        "gradient_bias_standard_error": 0.02 * np.array(error),
        "gradient_variance": 0.75 * np.array(error),
    }
    texts = [json.dumps(made_up_rival(method, graph, model)) for method in methods]
    times = scale * np.outer(time, spread)
    return measurement_record(texts, made_up_provenance(), scalars, times)


def made_up_benchmarks(folder: Path) -> xr.Dataset:
    """All rivals on two graphs, lean's variants, and growth in three directions."""
    few = ("pyg-eager", "pyg-checkpointing", "exact", "lean2")
    rivals = tuple(name for name in BENCHMARK if "-no-" not in name)
    records = [
        made_up_benchmark(),
        made_up_benchmark("flickr_shape", "sage-2x256", rivals, 0.7),
        *(
            made_up_benchmark(graph, methods=few, scale=num_nodes / 169_343)
            for graph, num_nodes in SCALED.items()
        ),
        *(
            made_up_benchmark(model=model, methods=few, scale=scale)
            for model, scale in (("sage-3x64", 0.55), ("sage-3x256", 1.9))
        ),
        *(
            made_up_benchmark(model=model, methods=few, scale=scale)
            for model, scale in (("sage-2x128", 0.6), ("sage-4x128", 1.4))
        ),
        made_up_benchmark(model="sage-8x128", methods=few, scale=3.1),
    ]
    paths = []
    for index, record in enumerate(records):
        paths.append(folder / f"{index:02}.nc")
        write_dataset(record, paths[-1])
    return collect_runs([], paths)


def hash_text(text):
    """A number for a text, the same in every process."""
    return int.from_bytes(text.encode()[-4:], "big")


def write_made_up(
    folder: Path,
    methods=("fp32", "exact", "block64", "block64-vm"),
    graphs=("digits",),
    measured=True,
):
    """Write records as the rules do; return the paths of runs and measurements."""
    runs = []
    for graph in graphs:
        for method in methods:
            path = folder / "runs" / f"{graph}-sage-2x64-{method}-s0to2.nc"
            write_dataset(made_up_run(made_up_spec(method, graph)), path)
            runs.append(path)
    measurements = [folder / "measurements" / "arxiv_shape-sage-3x128.nc"]
    if measured:
        write_dataset(made_up_measurement(), measurements[0])
    return runs, measurements if measured else []


def made_up_collection(folder: Path, **options) -> xr.Dataset:
    return collect_runs(*write_made_up(folder, **options))


def made_up_boundaries(block_sizes=(4, 8, 16, 32, 64, 1024, 4096)) -> xr.Dataset:
    """Boundaries that move inwards with the block size; 1 bit has none to move."""
    bits = np.array([1, 2, 4, 8])
    shape = (len(bits), len(block_sizes))
    boundaries = np.full((*shape, 256), np.nan)
    reduction = np.zeros(shape)
    for i, one in enumerate(bits):
        num_bins = 2**one - 1
        for j, size in enumerate(block_sizes):
            even = np.arange(num_bins + 1.0)
            shift = 0.02 * np.log2(size) * np.sin(2 * np.pi * even / num_bins)
            boundaries[i, j, : num_bins + 1] = even + shift
            reduction[i, j] = 0.02 * np.log2(size) * (one > 1)
    alpha = np.where(bits[:, None] > 1, boundaries[:, :, 1], np.nan)
    dims = ("bits", "block_size")
    return xr.Dataset(
        {
            "boundaries": ((*dims, "level"), boundaries, {"units": "bin"}),
            "alpha": (dims, alpha, {"units": "bin"}),
            "rounding_variance": (dims, 0.16 * (1 - reduction), {"units": "bin2"}),
            "rounding_variance_even": (dims, 0.16 + 0 * reduction, {"units": "bin2"}),
            "variance_reduction": (dims, reduction, {"units": "1"}),
        },
        {
            "bits": bits,
            "block_size": list(block_sizes),
            "level": np.arange(256),
        },
    )


def made_up_distributions(graph="digits", model="sage-2x64") -> xr.Dataset:
    """Clipped normals of two block sizes, and the laws fitted to them."""
    tensors = ["layer1.input", "layer1.aggregated", "layer1.batch_norm"]
    tensors += ["layer2.input", "layer2.aggregated"]
    epochs, projected, num_interior = [1, 20], [0, 1], 40
    edges = np.linspace(0, 3, num_interior + 1)
    dims = ("tensor", "epoch", "projected")
    shape = (len(tensors), len(epochs), len(projected))
    probability = np.linspace(0.01, 0.99, 33)
    histogram = np.zeros((*shape, num_interior + 2))
    fitted = np.zeros((*shape, len(LAWS), num_interior + 2))
    observed_q = np.zeros((*shape, len(probability)))
    fitted_q = np.zeros((*shape, len(LAWS), len(probability)))
    guess = stats.norm(1.5, 0.6)
    low, high = guess.cdf([0, 3])
    inside = np.diff(guess.cdf(edges)) / (high - low)
    for index in np.ndindex(shape):
        sharp = tensors[index[0]].endswith("input") and not index[2]
        law = stats.norm(0.6, 0.9) if sharp else stats.norm(1.5, 0.65)
        histogram[index] = _shares(law, edges)
        observed_q[index] = np.clip(law.ppf(probability), 0, 3)
        fitted[index][0, 1:-1] = 1 / num_interior
        fitted[index][1, 1:-1] = np.diff(guess.cdf(edges))
        fitted[index][2, 1:-1] = inside
        fitted[index][3] = _shares(guess, edges)
        fitted_q[index][0] = 3 * probability
        fitted_q[index][1] = guess.ppf(probability)
        fitted_q[index][2] = guess.ppf(low + probability * (high - low))
        fitted_q[index][3] = np.clip(guess.ppf(probability), 0, 3)
    law_dims = (*dims, "law")
    distance = np.broadcast_to([0.08, 0.02, 0.015, 0.004], (*shape, len(LAWS))).copy()
    variables = {
        "jensen_shannon": (law_dims, distance, "bit"),
        "kolmogorov_smirnov": (law_dims, 2 * distance, "1"),
        "ks_p_value": (law_dims, 0.1 + 0 * distance, "1"),
        "jensen_shannon_noise": (dims, np.full(shape, 0.001), "bit"),
        "histogram": ((*dims, "bin"), histogram[..., 1:-1], "1"),
        "histogram_fitted": ((*law_dims, "bin"), fitted[..., 1:-1], "1"),
        "mass_at_minimum": (dims, histogram[..., 0], "1"),
        "mass_at_maximum": (dims, histogram[..., -1], "1"),
        "mass_at_minimum_fitted": (law_dims, fitted[..., 0], "1"),
        "mass_at_maximum_fitted": (law_dims, fitted[..., -1], "1"),
        "quantile_observed": ((*dims, "probability"), observed_q, "bin"),
        "quantile_fitted": ((*law_dims, "probability"), fitted_q, "bin"),
        "variance_reduction_predicted": (dims, np.full(shape, 0.0633), "1"),
        "variance_reduction_achieved": (dims, np.full(shape, 0.0512), "1"),
        "variance_reduction_best": (dims, np.full(shape, 0.0701), "1"),
    }
    return xr.Dataset(
        {
            name: (names, values, {"units": units, "long_name": name})
            for name, (names, values, units) in variables.items()
        },
        {
            "tensor": tensors,
            "epoch": epochs,
            "projected": projected,
            "law": list(LAWS),
            "probability": probability,
            "bin": (edges[1:] + edges[:-1]) / 2,
        },
        {"spec": json.dumps(made_up_spec("block64", graph, model, (0,))), "bits": 2},
    )


def _shares(law, edges):
    """Mass clipped to the lower end, in each interior bin, clipped to the upper end."""
    return [law.cdf(edges[0]), *np.diff(law.cdf(edges)), law.sf(edges[-1])]


def made_up_features(
    places=(("cora", "gcn"), ("cora", "gat"), ("pubmed", "gcn")),
    num_seeds=10,
    hyperparameters="published",
    drop=0.002,
) -> xr.Dataset:
    """Collected searches and measurements of feature bits, with made-up values.

    ABS keeps 1/25 of the full bytes and loses 0.2 points of each seed's accuracy. Full
    precision gains 0.1 points when it is tuned.
    """
    rng = np.random.default_rng(0)
    evaluations, measurements = [], []
    for graph, model in places:
        for strategy in ("surrogate", "random", "greedy", "uniform"):
            bits = np.geomspace(32, 1.2 if strategy == "surrogate" else 3, 12)
            loss = 0.001 * rng.random(12) + 0.02 * (bits < 1.5)
            allowed = np.where(loss <= 0.005, bits, np.inf)
            best = np.minimum.accumulate(allowed)
            for number in range(12):
                evaluations.append(
                    {
                        "graph": graph,
                        "model": model,
                        "hyperparameters": hyperparameters,
                        "strategy": strategy,
                        "granularity": "combined",
                        "aim": "max_drop",
                        "number": number + 1,
                        "accuracy": 0.8 - loss[number],
                        "memory": bits[number] * MIB,
                        "memory_per_value": bits[number],
                        "average_bits": bits[number],
                        "best_memory": best[number] * MIB,
                        "best_per_value": best[number],
                        "best_accuracy": 0.8,
                        "baseline": 0.8,
                        "max_drop": 0.005,
                    }
                )
        for method, ratio, loss in (("ABS", 25.0, drop), ("uniform 4", 7.5, 0.0)):
            for seed in range(num_seeds):
                full = 0.81 + 0.001 * seed
                measurements.append(
                    {
                        "measurement_graph": graph,
                        "measurement_model": model,
                        "measurement_hyperparameters": hyperparameters,
                        "method": method,
                        "seed": seed,
                        "measured_average_bits": 32 / (1.2 * ratio),
                        "measured_packed_memory": 10 * MIB / ratio,
                        "measured_full_memory": 10.0 * MIB,
                        "measured_input_memory": 9.0 * MIB,
                        "measured_csr_memory": 0.09 * MIB,
                        "measured_peak_memory": 2.0 * MIB,
                        "measured_full_peak_memory": 11.0 * MIB,
                        "measured_test_accuracy": full - loss,
                        "measured_full_test_accuracy": full,
                        "measured_full_tuned_test_accuracy": full + 0.001,
                        "provenance": json.dumps({"device": "cpu"}),
                    }
                )
    return xr.Dataset(
        {
            name: (dim, [row[name] for row in rows])
            for dim, rows in (
                ("evaluation", evaluations),
                ("measurement", measurements),
            )
            for name in rows[0]
        }
    )
