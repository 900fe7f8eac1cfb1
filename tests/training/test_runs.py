import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.records.datasets import RUN_CURVES, RUN_SCALARS
from pipeline_src.records.devices import resolve_device
from pipeline_src.training import runs
from pipeline_src.training.job import Job
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.networks import keeper_of
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import (
    MethodSpec,
    ModelSpec,
    RunSpec,
    TrainingSpec,
)
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer, training_loss

GRAPH = synthetic_graph(num_nodes=200, num_edges=1000, num_features=16)
FULL = MethodSpec("fp32", "FP32", "full")
BLOCK8 = MethodSpec("block8", "G/R = 8", "exact", 2, 4, 8)
SOLVED = dataclasses.replace(BLOCK8, name="block8-vm", boundaries="clipped_normal")
CPU = torch.device("cpu")
SHAPE = NetworkShape("sage", 18, 18, 4, 3, 0.5, True)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these small graphs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def solved(bits, size):
    """Made-up boundaries that tell which bits and block size they were asked for."""
    return (0.0, 1.0 + size / 10_000, 2.0, 2.0**bits - 1)


def run_spec(method, *, layer="sage", seeds=(0,), model=None, **changes):
    model = model or ModelSpec(f"{layer}-2x8", layer, 2, 8, 0.5, True)
    plan = TrainingSpec(4, 0.01, 0.0, 0.5, "cross_entropy")
    plan = dataclasses.replace(plan, **changes)
    return RunSpec("synthetic", model, method, plan, seeds, "cpu", "false")


def without_time(record):
    """All of a record that a seed decides."""
    return record.drop_vars("epoch_time")


# --- the record ---------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("method", [FULL, BLOCK8, SOLVED], ids=lambda m: m.name)
def test_same_specification_and_seed_give_an_identical_record(method, layer):
    """On one machine, all but the time, whatever was drawn before."""
    spec = run_spec(method, layer=layer, seeds=(3, 4))
    record = train_run(spec, Job(GRAPH, solved))
    torch.rand(5)
    again = train_run(spec, Job(GRAPH, solved))
    xr.testing.assert_identical(without_time(record), without_time(again))
    both = record["loss_curve"].values
    assert (both[0] != both[1]).all()


def test_a_seed_trains_alike_alone_and_beside_others():
    alone = train_run(run_spec(BLOCK8, seeds=(4,)), Job(GRAPH))
    beside = train_run(run_spec(BLOCK8, seeds=(3, 4)), Job(GRAPH)).sel(seed=[4])
    xr.testing.assert_equal(without_time(alone), without_time(beside))


def test_the_record_holds_what_was_trained_in_the_right_shapes():
    spec = run_spec(BLOCK8, seeds=(1, 2, 3), epochs=5)
    record = train_run(spec, Job(GRAPH, source_digest="0123"))
    assert dict(record.sizes) == {"seed": 3, "epoch": 5}
    assert record["seed"].values.tolist() == [1, 2, 3]
    assert record["epoch"].values.tolist() == [1, 2, 3, 4, 5]
    assert set(record.data_vars) == {*RUN_SCALARS, *RUN_CURVES}
    for name in RUN_SCALARS:
        assert record[name].dims == ("seed",)
    for name in RUN_CURVES:
        assert record[name].dims == ("seed", "epoch")
    assert not any(variable.isnull().any() for variable in record.values())
    assert RunSpec.from_json(json.loads(record.attrs["spec"])) == spec
    provenance = json.loads(record.attrs["provenance"])
    assert provenance["source_digest"] == "0123"
    assert provenance["device"] == "cpu"


def test_reported_accuracy_is_that_of_the_best_validation_epoch(monkeypatch):
    """The first of the best, whatever the test accuracy is elsewhere."""
    table = {"train": (0.4, 0.5, 0.6, 0.9), "validation": (0.2, 0.625, 0.625, 0.5)}
    table["test"] = (0.9, 0.375, 0.5, 1.0)
    epochs = iter(zip(*table.values(), strict=True))

    class Told(Trainer):
        def evaluate(self):
            return torch.tensor(next(epochs))

    monkeypatch.setattr(runs, "Trainer", Told)
    record = train_run(run_spec(BLOCK8), Job(GRAPH)).sel(seed=0)
    for name, curve in table.items():
        np.testing.assert_allclose(
            record[f"{name}_accuracy_curve"], curve, atol=2.0**-24
        )
    assert int(record["best_epoch"]) == 2
    assert float(record["validation_accuracy"]) == 0.625
    assert float(record["test_accuracy"]) == 0.375


def test_chance_is_the_share_of_the_most_frequent_class_among_test_nodes():
    record = train_run(run_spec(FULL, epochs=1), Job(GRAPH)).sel(seed=0)
    labels = GRAPH.labels[GRAPH.test_index].tolist()
    share = max(labels.count(label) for label in set(labels)) / len(labels)
    assert float(record["chance_accuracy"]) == pytest.approx(share, abs=2.0**-24)
    assert int(record["num_test_nodes"]) == len(labels)
    assert float(record["epoch_time"]) > 0


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("method", [FULL, BLOCK8, SOLVED], ids=lambda m: m.name)
def test_every_method_learns(method, layer):
    """Above chance c by 5 standard deviations of a coin, sqrt(c (1 - c) / n)."""
    graph = synthetic_graph(num_nodes=600, num_edges=4000, separation=3.0)
    record = train_run(run_spec(method, layer=layer, epochs=30), Job(graph, solved))
    losses = record["loss_curve"].values[0]
    record = record.sel(seed=0)
    chance, n = float(record["chance_accuracy"]), float(record["num_test_nodes"])
    deviation = math.sqrt(chance * (1 - chance) / n)
    assert float(record["test_accuracy"]) > chance + 5 * deviation
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("epochs", [1, 25])
def test_progress_is_reported_some_ten_times_and_at_the_end(epochs, caplog):
    with caplog.at_level(logging.INFO, logger=runs.__name__):
        train_run(run_spec(FULL, epochs=epochs), Job(GRAPH))
    reports = [r.message for r in caplog.records if ": epoch " in r.message]
    assert 1 <= len(reports) <= runs.PROGRESS_REPORTS + 3
    assert f"synthetic-sage-2x8-fp32-s0to0 seed 0: epoch {epochs} of" in reports[-1]


# --- resuming -----------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: as a signal ends a run, nothing may catch it."""


def record_evaluations(monkeypatch, *, killed_at=None):
    """List of the seeds that are evaluated; a run dies in one of them."""
    evaluated = []

    class Recorded(Trainer):
        def evaluate(self):
            evaluated.append(self.seed)
            if (self.seed, evaluated.count(self.seed)) == killed_at:
                raise Killed
            return super().evaluate()

    monkeypatch.setattr(runs, "Trainer", Recorded)
    return evaluated


def test_a_killed_run_resumes_with_the_seeds_that_are_missing(monkeypatch, tmp_path):
    """Killed in the second of three seeds: the first is kept, the record the same."""
    spec = run_spec(BLOCK8, seeds=(0, 1, 2))
    undisturbed = train_run(spec, Job(GRAPH))
    with monkeypatch.context() as patch:
        record_evaluations(patch, killed_at=(1, 3))
        with pytest.raises(Killed):
            train_run(spec, Job(GRAPH, partial_dir=tmp_path))
    with monkeypatch.context() as patch:
        evaluated = record_evaluations(patch)
        resumed = train_run(spec, Job(GRAPH, partial_dir=tmp_path))
        assert evaluated == 4 * [1] + 4 * [2]
        xr.testing.assert_identical(without_time(resumed), without_time(undisturbed))
        finished = train_run(spec, Job(GRAPH, partial_dir=tmp_path))
        assert len(evaluated) == 8
        xr.testing.assert_identical(finished, resumed)


def test_without_a_folder_every_call_trains_every_seed(monkeypatch):
    evaluated = record_evaluations(monkeypatch)
    for _ in range(2):
        train_run(run_spec(FULL, seeds=(0, 1), epochs=1), Job(GRAPH))
    assert evaluated == [0, 1, 0, 1]


# --- the trainer --------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_methods_of_one_seed_start_alike_and_drop_the_same_activations(layer):
    """Equal parameters; equal first logits but for the rounding of float32.

    A different Dropout mask would move them by a good part of their size; the order of
    a sum of at most 17 terms moves them by a millionth.
    """
    specs = [run_spec(method, layer=layer) for method in (FULL, BLOCK8)]
    full, block = (Trainer(spec, GRAPH, None, seed=5) for spec in specs)
    other = Trainer(specs[0], GRAPH, None, seed=6)
    start = full.model.state_dict()
    for name, parameter in block.model.state_dict().items():
        assert torch.equal(parameter, start[name])
    pairs = zip(full.model.parameters(), other.model.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
    full, block = (
        Trainer(spec, GRAPH, None, seed=5).logits(0).detach() for spec in specs
    )
    assert (full - block).abs().max() <= 1e-5 * full.abs().max()


def test_first_step_is_adam_by_hand():
    """Bias correction makes it lr g / (|g| + 1e-8), with the decayed, clipped g."""
    spec = run_spec(FULL, learning_rate=0.03, weight_decay=0.1, gradient_clip=0.01)
    trainer = Trainer(spec, GRAPH, None, seed=0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.step(0)
    parameters = list(trainer.model.parameters())
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
    assert norm == pytest.approx(0.01, rel=1e-4)  # clipping divides by norm + 1e-6
    for start, parameter in zip(before, parameters, strict=True):
        gradient = parameter.grad.double() + 0.1 * start.double()
        expected = start - 0.03 * gradient / (gradient.abs() + 1e-8)
        assert torch.all((parameter - expected).abs() <= 1e-6)


def test_without_a_clip_the_gradient_keeps_its_length():
    norms = []
    for clip in (None, 1e6):
        trainer = Trainer(run_spec(FULL, gradient_clip=clip), GRAPH, None, seed=0)
        trainer.step(0)
        grads = [parameter.grad for parameter in trainer.model.parameters()]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
    assert norms[0] == norms[1] > 0.5


def test_steps_draw_their_seeds_from_the_table():
    """Epochs round differently, and an epoch the same again from the same start."""
    trainers = [Trainer(run_spec(BLOCK8), GRAPH, None, seed=0) for _ in range(3)]
    assert trainers[0].seeds.shape == (4, 5)
    assert trainers[0].seeds.dtype == torch.int32
    other = Trainer(run_spec(BLOCK8), GRAPH, None, seed=1).seeds
    assert len({*trainers[0].seeds.flatten().tolist(), *other.flatten().tolist()}) == 40
    gradients = []
    for trainer, epoch in zip(trainers, (0, 0, 1), strict=True):
        torch.manual_seed(9)  # the same Dropout
        trainer.step(epoch)
        gradients.append(trainer.model.convolutions[0].root.weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_gradients_of_steps_do_not_add_up():
    """Without a learning rate the same step has the same gradient, time and again."""
    trainer = Trainer(run_spec(BLOCK8, learning_rate=0.0), GRAPH, None, seed=0)
    gradients = []
    for _ in range(2):
        torch.manual_seed(9)  # the same Dropout
        trainer.step(1)
        gradients.append(trainer.model.convolutions[0].root.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("method", [FULL, BLOCK8], ids=lambda m: m.name)
def test_accuracies_are_counted_node_by_node_in_evaluation_mode(method):
    trainer = Trainer(run_spec(method), GRAPH, None, seed=0)
    for epoch in range(3):
        trainer.step(epoch)
    accuracies = trainer.evaluate().tolist()
    trainer.model.eval()
    logits = trainer.model(GRAPH.features, trainer.aggregation).tolist()
    labels = GRAPH.labels.tolist()
    splits = (GRAPH.train_index, GRAPH.validation_index, GRAPH.test_index)
    for index, accuracy in zip(splits, accuracies, strict=True):
        nodes = index.tolist()
        right = sum(
            max(range(4), key=logits[node].__getitem__) == labels[node]
            for node in nodes
        )
        assert accuracy == pytest.approx(right / len(nodes), abs=2.0**-24)


# --- the loss -----------------------------------------------------------------------


@given(
    logits=st.lists(
        st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=6
    )
)
def test_losses_equal_their_formulas_node_by_node(logits):
    """CE = log Σ exp z - z_y; log CE = log(e + CE) - log e, with e = 1 - ln 2.

    float32 holds CE, at most 61 + ln 3, to a few of its ulp of 2**-18 or, where the
    terms cancel, of the logits; the log divides an error by at least e > 0.3.
    """
    labels = [node % 3 for node in range(len(logits))]
    entropies = [
        math.log(sum(math.exp(z - row[label]) for z in row))
        for row, label in zip(logits, labels, strict=True)
    ]
    offset = 1 - math.log(2)
    logs = [math.log(offset + entropy) - math.log(offset) for entropy in entropies]
    arguments = torch.tensor(logits), torch.tensor(labels)
    tolerance = 8 * 2.0**-18
    loss = float(training_loss(*arguments, "cross_entropy"))
    assert abs(loss - sum(entropies) / len(entropies)) <= tolerance
    loss = float(training_loss(*arguments, "log_cross_entropy"))
    assert abs(loss - sum(logs) / len(logs)) <= tolerance / offset


def test_the_loss_of_the_specification_is_the_one_trained_on():
    first = {
        kind: float(Trainer(run_spec(FULL, loss=kind), GRAPH, None, seed=0).step(0))
        for kind in ("cross_entropy", "log_cross_entropy")
    }
    trainer = Trainer(run_spec(FULL), GRAPH, None, seed=0)
    logits, labels = trainer.logits(0).detach(), GRAPH.labels[GRAPH.train_index]
    for kind, loss in first.items():
        assert loss == float(training_loss(logits, labels, kind))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match=r"'log_cross_entropy', got 'hinge'"):
        training_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), "hinge")


# --- what a method keeps ------------------------------------------------------------

PUBLISHED_BLOCKS = {  # width after projection: values per block at G/R = 2, 4, ..., 64
    16: (32, 64, 128, 256, 512, 1024),
    128: (256, 512, 1024, 1024, 1024, 1024),
    63: (126, 252, 504, 1008, 1008, 1008),
    32: (64, 128, 256, 512, 1024, 1024),
    256: (512, 1024, 1024, 1024, 1024, 1024),
}


@pytest.mark.parametrize("width", PUBLISHED_BLOCKS)
def test_block_sizes_are_those_of_the_published_table(width):
    methods = [dataclasses.replace(BLOCK8, rows_per_block=2**k) for k in range(1, 7)]
    sizes = tuple(method.block_size(width) for method in methods)
    assert sizes == PUBLISHED_BLOCKS[width]


@given(width=st.integers(1, 3000), rows=st.integers(1, 100), most=st.integers(1, 4096))
def test_a_block_is_whole_rows_at_least_one_and_no_more_than_asked(width, rows, most):
    method = dataclasses.replace(BLOCK8, rows_per_block=rows, max_block_size=most)
    in_block, rest = divmod(method.block_size(width), width)
    assert rest == 0
    assert 1 <= in_block <= rows
    assert in_block == 1 or in_block * width <= most
    assert in_block == rows or (in_block + 1) * width > most


def test_a_method_names_the_recipe_of_each_activation():
    """Projection only where it may be; boundaries for the block size that follows."""
    asked = []

    def boundaries_of(bits, size):
        asked.append((bits, size))
        return solved(bits, size)

    keep = keeper_of(SOLVED, SHAPE, boundaries_of, "false", CPU)
    projected, whole = keep("input", 18, True), keep("batch_norm", 18, False)
    recipes = [(r.bits, r.projection_ratio, r.block_size) for r in (projected, whole)]
    assert recipes == [(2, 4, 8 * 5), (2, 1, 8 * 18)]
    assert asked == [(2, 8 * 5), (2, 8 * 18)]
    for recipe in (projected, whole):
        expected = torch.tensor(solved(2, recipe.block_size))
        assert torch.equal(recipe.boundaries, expected)
        assert recipe.compile == "false"
    assert keeper_of(FULL, SHAPE, None, "false", CPU) is None
    even = keeper_of(BLOCK8, SHAPE, solved, "false", CPU)
    assert even("input", 18, True).boundaries is None


def test_an_activation_has_the_bits_of_its_hidden_layer():
    """Inputs those of the layer they lie behind, the network's input of the first."""
    method = dataclasses.replace(BLOCK8, bits=32, layer_bits=(4, 1))
    keep = keeper_of(method, SHAPE, None, "false", CPU)
    found = {
        name: keep(name, 18, True).bits
        for number in (1, 2, 3)
        for name in (f"layer{number}.input", f"layer{number}.batch_norm")
        if name != "layer3.batch_norm"
    }
    assert list(found.values()) == [4, 4, 4, 1, 1]


def test_a_method_without_the_boundaries_it_needs_is_refused():
    message = r"block8-vm reads its boundaries .* pass boundaries_of=read_boundaries"
    with pytest.raises(ValueError, match=message):
        train_run(run_spec(SOLVED), Job(GRAPH))


# --- memory -------------------------------------------------------------------------


def step_memory(method, graph=GRAPH, **changes):
    return measure_step_memory(Trainer(run_spec(method, **changes), graph, solved, 0))


def test_saved_memory_falls_with_the_rows_of_a_block_and_is_below_full_precision():
    """Fewer bits and features keep less; solved boundaries cost nothing that is kept.

    With 1,000 nodes the zero points of an activation take 4, 2 and 1 units of 512
    bytes at 1, 2 and 4 rows a block; more rows would not show.
    """
    graph = synthetic_graph(num_nodes=1000, num_edges=4000)

    def saved(method, **changes):
        method = dataclasses.replace(method, **changes)
        return step_memory(method, graph)["saved_memory"]

    falling = [saved(BLOCK8, rows_per_block=rows) for rows in (1, 2, 4)]
    assert falling[0] > falling[1] > falling[2]
    assert saved(FULL) > 2 * falling[0]
    assert saved(SOLVED, rows_per_block=4) == falling[2]
    assert saved(BLOCK8, rows_per_block=4, bits=4) > falling[2]
    assert saved(BLOCK8, rows_per_block=4, projection_ratio=1) > falling[2]


@pytest.mark.parametrize("method", [FULL, BLOCK8], ids=lambda m: m.name)
def test_a_step_needs_more_than_it_keeps_and_the_loss_keeps_something(method):
    """Log CE keeps nodes' losses and logits besides, which the published books omit."""
    books = step_memory(method, loss="log_cross_entropy")
    assert books["saved_memory"] < books["saved_memory_with_loss"]
    state = sum(
        2 * allocated_bytes(p.nbytes) + 512  # two moments and a step count of Adam
        for p in Trainer(run_spec(method), GRAPH, None, 0).model.parameters()
    )
    assert books["peak_memory"] > books["saved_memory_with_loss"] + state


@pytest.mark.parametrize("method", [FULL, BLOCK8], ids=lambda m: m.name)
def test_resident_memory_is_model_and_data_counted_by_hand(method):
    """Each tensor once, in units of 512 bytes; 200 nodes, 1,000 entries, width 8."""
    num_seeds = 5 if method is BLOCK8 else 0
    nbytes = [
        *(4 * 200 * 16, 8 * 200),  # features, labels
        *(8 * len(i) for i in (GRAPH.train_index, GRAPH.validation_index)),
        8 * len(GRAPH.test_index),
        *(4 * 201, 4 * 1000, 4 * 1000, 4 * 1000),  # structure, weights to and fro
        *(4 * 8 * 16, 4 * 8, 4 * 8 * 16),  # first convolution: weight, bias, weight
        *(4 * 4 * 8, 4 * 4, 4 * 4 * 8),  # second convolution, to 4 classes
        *(4 * 8 for _ in range(4)),  # BatchNorm: weight, bias, mean, variance
        8,  # and its number of batches
        *(4 * 4 * num_seeds, num_seeds),  # seeds of 4 epochs; flags
    ]
    expected = sum(math.ceil(count / 512) * 512 for count in nbytes)
    assert step_memory(method)["resident_memory"] == expected


# --- what cannot be trained ---------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "num_layers", "epochs", "cause"),
    [
        # Progress is first looked at after two of 20 epochs, after one of 1.
        (FULL, 2, 20, r"the loss is nan after epoch 2\."),
        (BLOCK8, 2, 20, r"the loss is nan after epoch 2\."),
        (BLOCK8, 3, 20, r"NaN or infinity in the activations layer3.input, .*"),
        (FULL, 2, 1, r"NaN or infinity in logits after epoch 1\."),
    ],
)
def test_a_training_that_diverges_names_the_run_and_the_remedy(
    method, num_layers, epochs, cause
):
    """Weights of 1e30 times features, squared by the second layer: past float32.

    BatchNorm would hide it: it brings any finite output back to unit variance. No loss
    follows the last step: there only weights and logits tell.
    """
    model = ModelSpec("wild", "sage", num_layers, 8, 0.5, False)
    spec = run_spec(
        method,
        model=model,
        seeds=(7,),
        epochs=epochs,
        learning_rate=1e30,
        gradient_clip=None,
    )
    remedy = r"Lower learning_rate or set gradient_clip\.$"
    with pytest.raises(
        FloatingPointError, match=rf"^{spec.cell} seed 7: {cause} {remedy}"
    ):
        train_run(spec, Job(GRAPH))


@pytest.mark.parametrize("name", ["convolutions.0.root.weight", "norms.0.running_var"])
def test_numbers_of_the_model_that_are_not_finite_are_named(name):
    """Though loss, activations and logits so far were: only the next use would tell."""
    trainer = Trainer(run_spec(FULL), GRAPH, None, 0)
    losses = trainer.step(0)[None]
    trainer.evaluate()
    trainer.check_finite(losses)
    trainer.model.state_dict()[name].fill_(math.inf)
    with pytest.raises(FloatingPointError, match=rf"infinity in {name} after epoch 1"):
        trainer.check_finite(losses)


def test_logits_of_a_few_nodes_that_are_not_finite_are_named():
    """One layer: a node reaches its neighbours and no further."""
    model = ModelSpec("one", "sage", 1, 8, 0.0, False)
    trainer = Trainer(run_spec(FULL, model=model), GRAPH, None, 0)
    features = GRAPH.features.clone()
    features[3] = math.nan
    trainer.graph = dataclasses.replace(GRAPH, features=features)
    trainer.evaluate()
    with pytest.raises(FloatingPointError, match="infinity in logits after epoch 1"):
        trainer.check_finite(torch.zeros(1))


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for has_gpu, kind in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert resolve_device("auto").type == kind
        assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda").type == "cuda"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch finds no GPU; set device: auto"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match=r"must be auto, cpu or cuda, got 'tpu'"):
        resolve_device("tpu")


NOBODY = torch.tensor([], dtype=torch.int64)


@pytest.mark.parametrize("split", ["train_index", "validation_index", "test_index"])
def test_a_split_without_nodes_is_refused_before_the_first_epoch(split, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("an epoch began"))
    graph = dataclasses.replace(GRAPH, **{split: NOBODY})
    with pytest.raises(ValueError, match=f"^{split}: expected at least one node to"):
        train_run(run_spec(FULL), Job(graph))
    if split == "train_index":  # all that a measurement needs
        with pytest.raises(ValueError, match=r"^train_index: expected at least one"):
            Trainer(run_spec(FULL), graph, None, 0)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        (
            {"test_index": torch.cat([GRAPH.validation_index[:3], GRAPH.test_index])},
            "synthetic: validation_index and test_index share 3 nodes",
        ),
        (
            {"validation_index": GRAPH.train_index},
            f"train_index and validation_index share {len(GRAPH.train_index)} nodes",
        ),
        (
            {"test_index": (GRAPH.labels == 1).nonzero()[:7].flatten()},
            "all 7 nodes of test_index are of one class",
        ),
    ],
    ids=["overlap", "same", "class"],
)
def test_a_doubtful_split_is_logged_and_recorded(changes, doubt, caplog):
    graph = dataclasses.replace(GRAPH, **changes)
    with caplog.at_level(logging.WARNING):
        record = train_run(run_spec(FULL), Job(graph))
    assert doubt in caplog.text
    assert doubt in record.attrs["provenance"]
    assert "doubts" not in train_run(run_spec(FULL), Job(GRAPH)).attrs["provenance"]
