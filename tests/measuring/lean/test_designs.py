"""The layouts that lean was chosen from, and the network that they are measured in."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.graphs.sizes import ARXIV
from pipeline_src.measuring.byte_books import saved_bytes
from pipeline_src.measuring.gradient_error import split_error
from pipeline_src.measuring.lean.designs import (
    DESIGNS,
    DROPOUT,
    STEPS,
    WIDTH,
    draw_gradients,
    trained_network,
)
from pipeline_src.measuring.lean.layouts import (
    Estimate,
    kept,
    shared_noise,
    side_means,
    sides_of,
    three_and_mean,
    three_and_two,
    two_ends,
)
from pipeline_src.measuring.lean.training import Hidden
from pipeline_src.measuring.runs import measure_gradient_errors
from pipeline_src.quant.rectified import Normalization
from pipeline_src.quant.shared_noise import LARGEST_ESTIMATE
from pipeline_src.training.job import Job
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import training_loss

PUBLISHED = Path(__file__).parents[3] / "results" / "published" / "lean_bias.csv"
DRAWS = 4000
UNBIASED = {
    "two ends": two_ends,
    "three and two": three_and_two,
    "shared noise": shared_noise(1, False),
    "shared noise, mended": shared_noise(1, True),
    "shared noise, 4 bits": shared_noise(7, True),
}


@pytest.fixture(scope="module")
def network():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield trained_network(digits_graph())
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sides():
    """Thresholds on either side of 0, weights of both signs; 21 rows: a part block."""
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(21, 4, generator=generator)
    weight = torch.tensor([1.0, -0.7, 1.3, -1.1])
    bias = torch.tensor([0.0, 0.3, -0.4, 0.1])
    return sides_of(n, Normalization(torch.zeros(4), torch.ones(4), weight, bias))


def drawn(layout, sides):
    """Estimates of n, and of their variance, for noise at even distances."""
    noise = (torch.arange(DRAWS) + 0.5) / DRAWS
    found = [layout(sides, u.expand(sides.n.shape)) for u in noise]
    return torch.stack([one.n for one in found]), torch.stack(
        [torch.as_tensor(one.variance).expand(sides.n.shape) for one in found]
    )


@pytest.mark.parametrize("name", UNBIASED)
def test_layouts_that_round_are_unbiased_value_by_value(name, sides):
    """Over noise a layout jumps once: its mean is known to half a jump's share."""
    off = drawn(UNBIASED[name], sides)[0].double().mean(dim=0) - sides.n
    assert bool((off.abs() <= LARGEST_ESTIMATE * sides.reach.abs() / DRAWS).all())


@pytest.mark.parametrize("steps", [1, 7])
def test_the_variance_to_take_off_is_that_of_the_estimate(steps, sides):
    found, variance = drawn(shared_noise(steps, True), sides)
    off = ((found - sides.n).square() - variance).double().mean(dim=0)
    largest = (LARGEST_ESTIMATE * sides.reach).square()
    assert bool((off.abs() <= 2 * largest / DRAWS).all())
    assert bool((variance.mean(dim=0) > 0).all())


def test_means_of_a_side_are_right_in_its_sum_and_nowhere_else(sides):
    for layout, of in ((side_means, [True, False]), (three_and_mean, [False])):
        found = layout(sides, torch.full_like(sides.n, 0.5)).n
        for side in of:
            off_by = torch.where(sides.active == side, found - sides.n, 0.0)
            bound = len(off_by) * 4 * torch.finfo(torch.float32).eps
            assert off_by.sum(dim=0).abs().max() <= bound
            assert off_by.abs().max() > 0.1


def test_nothing_is_off_where_all_is_kept(sides):
    assert torch.equal(kept(sides, torch.zeros(())).n, sides.n)


def test_gradients_are_those_of_torch_where_n_is_known(network):
    """Without Dropout, which torch draws elsewhere."""
    forward = network.forward(0.0, torch.Generator().manual_seed(0))
    estimates = [Estimate(one.sides.n) for one in forward.hidden]
    found = network.weight_gradients(forward, estimates)
    x, graph = network.graph.features, network.graph
    for convolution, norm in zip(network.convolutions, network.norms, strict=False):
        y = convolution.plain(x, network.aggregation)
        x = torch.nn.functional.batch_norm(y, None, None, norm.weight, norm.bias, True)
        x = x.relu()
    logits = network.convolutions[-1].plain(x, network.aggregation)
    loss = training_loss(
        logits[graph.train_index], graph.labels[graph.train_index], "cross_entropy"
    )
    weights = [
        weight
        for one in network.convolutions
        for weight in (one.neighbor.weight, one.root.weight)
    ]
    expected = torch.autograd.grad(loss, weights)
    for mine, theirs in zip(found, expected, strict=True):
        # Sums over all nodes, through three layers.
        bound = 3 * graph.num_nodes * torch.finfo(torch.float32).eps
        assert (mine - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("mended", [True, False])
def test_the_smallest_gradient_is_right_in_the_mean_if_the_variance_is_taken_off(
    mended,
):
    """One feature of four nodes, as 20,000 features with noise of their own."""
    y = torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None].expand(4, 20_000)
    ones = torch.ones(y.shape[1])
    inverse_std = float(y[:, 0].var(unbiased=False) + 1e-5) ** -0.5
    how = Normalization(0 * ones, inverse_std * ones, ones, 0 * ones)
    hidden = Hidden(sides_of(y * inverse_std, how), how, torch.ones(y.shape))
    gradient = torch.tensor([0.0, 0.0, 1.0, 0.0])[:, None].expand(y.shape)
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    estimate = shared_noise(1, mended)(hidden.sides, noise)
    found = hidden.input_gradient(gradient, estimate).double()
    right = torch.tensor([-0.0447, -0.0894, 0.3130, -0.1789], dtype=torch.float64)
    # Four digits are given.
    bound = 5 * found.std(dim=1) / y.shape[1] ** 0.5 + 5e-5
    assert bool(((found.mean(dim=1) - right).abs() <= bound).all()) == mended


@pytest.mark.parametrize(("bits", "steps"), [(1, None), (2, 1), (4, 7)])
def test_lean_itself_errs_as_its_layout_does(network, bits, steps):
    """Squared errors of 12 draws each: means within 5 standard errors of the two."""
    layout = side_means if steps is None else shared_noise(steps, True)
    estimated, exact = (
        torch.cat(one, dim=1) for one in draw_gradients(network, (layout,) * 2, 12)
    )
    each = ((estimated - exact).norm(dim=1) / exact.norm(dim=1)).square()
    model = ModelSpec("sage-3x64", "sage", 3, WIDTH, DROPOUT, True)
    training = TrainingSpec(STEPS, 0.01, 0.0, 0.5, "cross_entropy")
    method = MethodSpec("lean", "lean", "lean", bits, rows_per_block=8)
    spec = RunSpec("digits", model, method, training, (0,), "cpu", "false")
    (built,) = measure_gradient_errors([spec], Job(network.graph), steps=5, draws=12)
    layouts = split_error(estimated, exact)
    # Those of the kernels scatter as much.
    bound = 5 * (2 / 12) ** 0.5 * float(each.std())
    assert abs(built.total - layouts.total) <= bound
    assert bound < 0.2 * built.total


@pytest.mark.parametrize(
    ("design", "bits"), [(DESIGNS[0], 1), (DESIGNS[4], 2), (DESIGNS[6], 4)]
)
def test_bytes_of_what_is_built_are_those_of_the_books(design, bits):
    model = ModelSpec("sage-3x128", "sage", 3, 128, 0.5, True)
    method = MethodSpec("lean", "lean", "lean", bits, rows_per_block=8)
    assert design.bits == (bits, bits)
    booked = saved_bytes(model, method, ARXIV, "log_cross_entropy")
    assert design.saved_bytes == booked
    assert replace(design, bits=(bits, 0)).saved_bytes < booked


def test_published_layouts_are_those_measured_here():
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layout"] for row in rows] == [design.name for design in DESIGNS]
    for row, design in zip(rows, DESIGNS, strict=True):
        mib = f"{design.saved_bytes / 2**20:.2f}"
        assert row["saved, arxiv shape [MiB]"] == mib


def test_published_layouts_are_biased_where_a_mean_stands_for_a_side_and_nowhere_else():
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for part in ("", ", first layer"):
                bias = float(row[f"squared bias{part}"])
                shown = abs(bias) > 5 * float(row[f"± standard error{part}"])
                assert shown == (" mean " in row["layout"]), row["layout"]
