"""Several processes compute what one computes: aggregations, gradients, trainings."""

import math
from dataclasses import replace

import pytest
import rank_cases
import torch
from rank_cases import NODES, WIDTH, spec

from pipeline_src.distributed.aggregation import Halo
from pipeline_src.distributed.jobs.local import run_on_ranks
from pipeline_src.distributed.parts import cut
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.distributed.wire import Wire
from pipeline_src.gnn.aggregation import gcn_aggregation, mean_aggregation
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.training.spec import BatchSpec
from pipeline_src.training.trainer import Trainer

UNIT = 2.0**-24  # of float32
# Two orders of the same sums, over at most all nodes, each in one step: three products
# and a norm in each of three layers, forward and back, and the loss.
ROUNDING = 2 * (3 * 4 * 2 + 1) * NODES * UNIT
SIZES = [2, 3]


def join(parts):
    """Rows of all ranks in the order of the whole graph; forward and back."""
    nodes = torch.cat([one[0] for one in parts])
    order = nodes.argsort()
    assert torch.equal(nodes[order], torch.arange(NODES))
    return [torch.cat([one[i] for one in parts], dim=1)[:, order] for i in (1, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("owner", rank_cases.OWNERS)
def test_means_of_whole_numbers_are_equal_to_the_bit(size, owner):
    """Directed, so that the transpose is another matrix; every sum is exact."""
    graph = rank_cases.whole_numbers()
    case = ("whole_numbers", owner, "sage", graph.features)
    forward, back = join(run_on_ranks(rank_cases.aggregate, size, *case))
    whole = mean_aggregation(graph.adjacency)
    assert torch.equal(forward[0], whole(graph.features))
    assert torch.equal(back[0], whole.transpose(graph.features))


def test_gcn_weights_are_those_of_the_whole_graph():
    graph = rank_cases.whole_numbers()
    row = torch.arange(NODES).repeat_interleave(rank_cases.IN_DEGREE)
    assert (row == graph.adjacency.column).any(), "a loop that is not doubled"
    case = ("whole_numbers", "uneven", "gcn", graph.features)
    forward, back = join(run_on_ranks(rank_cases.aggregate, 3, *case))
    whole = gcn_aggregation(graph.adjacency)
    for found, aggregate in ((forward, whole), (back, whole.transpose)):
        # Each sum errs by at most its length times a unit of the sum of sizes.
        bound = 2 * (NODES + 1) * UNIT * aggregate(graph.features.abs())
        assert ((found[0] - aggregate(graph.features)).abs() <= bound).all()


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_whole_numbers_are_equal_to_the_bit(size):
    graph = rank_cases.whole_numbers()
    model = rank_cases.integer_network(graph, GraphNetwork)
    output = model(graph.features, mean_aggregation(graph.adjacency))
    loss = (output * rank_cases.readout()).sum()
    loss.backward()
    gradients = [one.grad for one in model.parameters()]
    assert max(one.abs().max() for one in gradients) < 2**18, "64ths stay exact"
    for found in run_on_ranks(rank_cases.integer_gradients, size, "uneven"):
        assert torch.equal(found[0], loss)
        assert all(map(torch.equal, found[1], gradients))


def whole_training(graph, run, steps):
    trainer = Trainer(run, graph, None, 0)
    losses = torch.stack([trainer.step(epoch) for epoch in range(steps)])
    return losses, trainer


def check_first_step(found, graph, run):
    losses, trainer = whole_training(graph, run, 1)
    gradients = [one.grad for one in trainer.model.parameters()]
    largest = max(one.norm() for one in gradients)
    for one in found:
        assert abs(one["losses"][0] - losses[0]) <= ROUNDING * losses[0]
        for ours, theirs in zip(one["gradients"], gradients, strict=True):
            assert (ours - theirs).norm() <= ROUNDING * largest


@pytest.mark.parametrize("layer", ["sage", "gcn"])
@pytest.mark.parametrize("policy", ["full", "exact"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_loss_and_gradients_are_those_of_one_process(layer, policy, batch_norm):
    """`exact` keeps 32 bits, so its backward is its own and its values are whole."""
    run = spec(layer, batch_norm, policy)
    found = run_on_ranks(rank_cases.train, 3, "planted", "uneven", run)
    check_first_step(found, rank_cases.planted(), run)


def test_running_statistics_are_those_of_all_nodes():
    run = spec()
    found = run_on_ranks(rank_cases.train, 2, "planted", "uneven", run)
    _, trainer = whole_training(rank_cases.planted(), run, 1)
    for name, theirs in trainer.model.state_dict().items():
        if "running" in name or "tracked" in name:
            for one in found:
                error = (one["state"][name] - theirs).double().norm()
                assert error <= ROUNDING * theirs.double().norm(), name


def test_ranks_keep_equal_parameters_and_one_loss():
    """With Dropout and codes, which are drawn on each rank alone."""
    run = spec("sage", True, "exact", bits=2, dropout=0.5)
    case = ("planted", "even", run, 3, 2)
    first, *others = run_on_ranks(rank_cases.train, 3, *case)
    for one in others:
        assert torch.equal(one["losses"], first["losses"])
        assert torch.equal(one["accuracy"], first["accuracy"])
        assert all(map(torch.equal, one["state"].values(), first["state"].values()))


def test_a_graph_of_two_components_needs_no_halo():
    graph = rank_cases.planted()
    row = torch.arange(NODES).repeat_interleave(graph.adjacency.degree.long())
    column = graph.adjacency.column.long()
    owner = rank_cases.even(2)
    stays = owner[row] == owner[column]
    adjacency = adjacency_from_edges(column[stays].numpy(), row[stays].numpy(), NODES)
    graph = replace(graph, adjacency=adjacency)
    run = spec()
    found = run_on_ranks(rank_cases.train, 2, graph, owner, run)
    assert [one["bytes"] for one in found] == [[0], [0]]
    check_first_step(found, graph, run)


def test_a_rank_without_training_nodes_takes_part():
    graph = rank_cases.planted()
    owner = torch.ones(NODES, dtype=torch.int64)
    owner[graph.validation_index] = 0
    found = run_on_ranks(rank_cases.train, 2, graph, owner, spec())
    check_first_step(found, graph, spec())


@pytest.mark.parametrize("bits", [1, 2, 32])
@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_books_are_the_bytes_handed_over(bits, layer):
    case = ("planted", "uneven", spec(layer), 2, bits)
    for one in run_on_ranks(rank_cases.train, 3, *case):
        assert {dtype for _, dtype in one["handed"]} == {torch.uint8}
        assert sum(count for count, _ in one["handed"]) == sum(one["bytes"])
        assert one["bytes"] == [one["expected_bytes"]] * 2


def spread_of(rows, bits):
    """Most that two neighbouring codes of a row can differ by, (num_rows, 1).

    The ends of its range, rounded outwards to bfloat16: see quant/blockwise.py.
    """
    smallest, largest = rows.aminmax(dim=1, keepdim=True)
    widened = (largest - smallest + 2.0**-7 * smallest.abs()) * (1 + 2.0**-7)
    return widened / (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_coded_rows_aggregate_without_bias(bits):
    """The mean over seeds is the exact aggregation, by Hoeffding's inequality.

    A value that arrives is one of two neighbours; the inequality is that of a sum of
    independent numbers of such ranges, and fails by chance once in a million tests.
    """
    graph, owner = rank_cases.planted(), rank_cases.even(2)
    x = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(7))
    count = 300
    seeds = torch.arange(2 * count, dtype=torch.int32).view(count, 2)
    case = ("planted", "even", "sage", x, bits, seeds)
    found = join(run_on_ranks(rank_cases.aggregate, 2, *case))
    whole = mean_aggregation(graph.adjacency)
    across = whole.matrix.to_dense() * (owner[:, None] != owner)
    spread = spread_of(x, bits)
    spread_back = spread_of(across.T @ x, bits)  # one row of each node travels back
    squares = (across.square() @ spread.square(), spread_back.square())
    spreads = (across @ spread, spread_back)
    exact = (whole(x), whole.transpose(x))
    sizes = (whole(x.abs()), whole.transpose(x.abs()))
    chance = math.log(2 * 2 * x.numel() / 1e-6)
    for i in range(2):
        assert found[i].std(dim=0).max() > 0, "codes were sent"
        bound = (squares[i] * chance / (2 * count)).sqrt()
        # Noise of 16 bits (quant/noise.py), and sums.
        bound = bound + (1 + (2**bits - 1) / 32) * 2.0**-17 * spreads[i]
        bound = bound + 2 * NODES * UNIT * sizes[i]
        error = (found[i].mean(dim=0) - exact[i]).abs()
        assert (error <= bound).all()
        # No value is further away than its codes are apart.
        furthest = spreads[i] + 2 * NODES * UNIT * sizes[i]
        assert ((found[i] - exact[i]).abs().amax(dim=0) <= furthest).all()


def test_a_part_of_another_rank_is_refused():
    parts = list(cut(rank_cases.planted(), rank_cases.even(2), 2))
    with pytest.raises(ValueError, match="rank 0 of 1 needs its own part, got"):
        Halo(parts[1], Ranks(), Wire())


def test_ranks_without_a_group_are_refused():
    with pytest.raises(ValueError, match=r"2 ranks need torch.distributed.init_proc"):
        Ranks(0, 2)


@pytest.mark.parametrize("policy", ["lean", "pyg"])
def test_other_policies_are_refused(policy):
    (part,) = cut(rank_cases.planted(), torch.zeros(NODES, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="full or exact, got"):
        PartTrainer(spec(policy=policy), part, Ranks(), Wire(), 0)


def test_batches_and_classes_are_refused():
    (part,) = cut(rank_cases.planted(), torch.zeros(NODES, dtype=torch.int64), 1)
    run = spec()
    batches = BatchSpec("cluster", 1, num_parts=2)
    training = replace(run.training, batches=batches)
    with pytest.raises(ValueError, match="takes the full graph, got batches"):
        PartTrainer(replace(run, training=training), part, Ranks(), Wire(), 0)
    model = replace(run.model, layer="torch_geometric.nn.GAT", input="edges")
    with pytest.raises(
        ValueError, match=r"got class torch_geometric\.nn\.GAT of model"
    ):
        PartTrainer(replace(run, model=model), part, Ranks(), Wire(), 0)


@pytest.mark.parametrize("policy", ["full", "exact"])
def test_one_rank_trains_as_trainer_does(policy):
    """To rounding of the norm's sums; with Dropout and codes, by the same draws."""
    graph, run = rank_cases.planted(), spec("gcn", False, policy, 2, dropout=0.5)
    (part,) = cut(graph, torch.zeros(NODES, dtype=torch.int64), 1)
    ours = PartTrainer(run, part, Ranks(), Wire(), 0)
    losses = torch.stack([ours.step(epoch) for epoch in range(3)])
    theirs, trainer = whole_training(graph, run, 3)
    assert torch.equal(losses, theirs)
    assert torch.equal(ours.evaluate(), trainer.evaluate())


@pytest.mark.parametrize("layer", ["sage", "gcn"])
def test_each_exchange_of_each_step_rounds_by_a_seed_of_its_own(monkeypatch, layer):
    taken = []
    encode = Wire.encode

    def recorded(wire, rows, seed):
        taken.append(None if seed is None else int(seed))
        return encode(wire, rows, seed)

    monkeypatch.setattr(Wire, "encode", recorded)
    (part,) = cut(rank_cases.planted(), torch.zeros(NODES, dtype=torch.int64), 1)
    trainer = PartTrainer(spec(layer), part, Ranks(), Wire(2), 0)
    assert taken == ([None] if layer == "sage" else []), "features travel once"
    taken.clear()
    for epoch in range(2):
        trainer.step(epoch)
    assert len(set(taken)) == len(taken) == 2 * trainer.model.num_exchanges
    assert taken == trainer.wire_seeds[:2].flatten().tolist()
    taken.clear()
    trainer.evaluate()
    # In full precision; GraphSAGE has the aggregation of features already.
    assert taken == [None] * len(trainer.model.sent_widths()[0])


def test_an_aggregation_that_is_kept_is_refused_once_features_change():
    (part,) = cut(rank_cases.planted(), torch.zeros(NODES, dtype=torch.int64), 1)
    trainer = PartTrainer(spec(), part, Ranks(), Wire(), 0)
    own, other = part.features, part.features.clone() * 2
    assert trainer.aggregation(own) is trainer.aggregation(own)
    assert torch.equal(trainer.aggregation(other), 2 * trainer.aggregation(own))
    own.mul_(2)
    with pytest.raises(RuntimeError, match="an inplace operation: features"):
        trainer.step(0)


def test_what_is_not_finite_is_reported():
    graph = rank_cases.planted()
    (part,) = cut(graph, torch.zeros(NODES, dtype=torch.int64), 1)
    trainer = PartTrainer(spec(), part, Ranks(), Wire(), 0)
    trainer.check_finite(trainer.step(0), 0)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="after epoch 2"):
        trainer.check_finite(torch.zeros(()), 1)
