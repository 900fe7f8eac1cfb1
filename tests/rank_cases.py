"""What ranks do in tests: functions that each of a group runs, and their graphs."""

import os
import signal
import time
from dataclasses import fields, replace

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.distributed.aggregation import Halo, part_aggregation
from pipeline_src.distributed.network import PartNetwork
from pipeline_src.distributed.parts import cut
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.train import train as train_by_plan
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.distributed.wire import Wire
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import Graph, adjacency_from_edges
from pipeline_src.training.meters import resident_bytes
from pipeline_src.training.networks import shape_of
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec

NODES, WIDTH, CLASSES = 48, 6, 3
IN_DEGREE = 4  # a power of two: means of integers are exact


def planted():
    return synthetic_graph(NODES, 200, WIDTH, CLASSES, seed=3)


def whole_numbers():
    """Directed, four senders for each node, features that are small integers."""
    draw = np.random.default_rng(4)
    sender = [draw.choice(NODES, IN_DEGREE, replace=False) for _ in range(NODES)]
    receiver = np.repeat(np.arange(NODES), IN_DEGREE)
    adjacency = adjacency_from_edges(
        np.concatenate(sender), receiver, NODES, symmetrize=False
    )
    features = torch.from_numpy(draw.integers(-3, 4, (NODES, WIDTH))).float()
    like = planted()
    splits = like.splits
    return Graph("whole", features, like.labels, **splits, adjacency=adjacency,
                 num_classes=CLASSES)  # fmt: skip


GRAPHS = {"planted": planted, "whole_numbers": whole_numbers}


def even(size):
    return torch.arange(NODES) * size // NODES


def uneven(size):
    """One node for the last rank, the others mixed."""
    owner = torch.arange(NODES) * 7 % NODES % max(size - 1, 1)
    owner[5] = size - 1
    return owner


OWNERS = {"even": even, "uneven": uneven}


def spec(layer="sage", batch_norm=True, policy="full", bits=32, dropout=0.0, epochs=3):
    model = ModelSpec("m", layer, 3, 8, dropout, batch_norm)
    method = MethodSpec("m", "m", policy, bits=bits)
    training = TrainingSpec(epochs, 0.01, 0.0, None, "cross_entropy")
    return RunSpec("made up", model, method, training, (0,), "cpu", "false")


def my_part(graph, owner):
    ranks = Ranks.joined()
    return list(cut(graph, owner, ranks.size))[ranks.rank], ranks


def my_halo(graph, owner, bits=32):
    part, ranks = my_part(graph, owner)
    return Halo(part, ranks, Wire(bits, "false"))


def aggregate(graph_name, owner_name, layer, x, bits=32, seeds=None):
    """Both directions of the rows of x: nodes, results, for each seed."""
    graph = GRAPHS[graph_name]()
    halo = my_halo(graph, OWNERS[owner_name](dist.get_world_size()), bits)
    aggregation = part_aggregation(layer, halo)
    own = x[halo.part.nodes]
    results = []
    for pair in [None] if seeds is None else seeds + 1000 * halo.ranks.rank:
        halo.start(pair)
        results.append((aggregation(own), aggregation.transpose(own)))
    forward, back = (torch.stack(one) for one in zip(*results, strict=True))
    return halo.part.nodes, forward, back


def integer_network(graph, network_of):
    """A network of small integer parameters, (features, aggregation) -> loss."""
    torch.manual_seed(0)
    model = network_of(shape_of(spec(batch_norm=False).model, graph))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randint(-1, 2, one.shape, generator=draw))
    return model


def readout():
    draw = torch.Generator().manual_seed(2)
    return torch.randint(-1, 2, (NODES, CLASSES), generator=draw).float()


def integer_gradients(owner_name):
    graph = whole_numbers()
    halo = my_halo(graph, OWNERS[owner_name](dist.get_world_size()))
    part = halo.part
    model = integer_network(graph, lambda shape: PartNetwork(shape, halo.ranks))
    halo.start(None)
    output = model(part.features, part_aggregation("sage", halo))
    loss = (output * readout()[part.nodes]).sum()
    loss.backward()
    found = [halo.ranks.add_up(one.grad) for one in model.parameters()]
    return halo.ranks.add_up(loss.detach()), found


def train(graph_name, owner, run, steps=1, bits=32, seed=0):
    """Losses, the last gradients, parameters, accuracies, and bytes of each step."""
    graph = GRAPHS[graph_name]() if isinstance(graph_name, str) else graph_name
    if isinstance(owner, str):
        owner = OWNERS[owner](dist.get_world_size())
    part, ranks = my_part(graph, owner)
    trainer = PartTrainer(run, part, ranks, Wire(bits, "false"), seed)
    losses, sent, handed = [], [], []
    plain = dist.all_to_all_single

    def counted(output, given, *sizes):
        handed.append((given.numel() * given.element_size(), given.dtype))
        plain(output, given, *sizes)

    dist.all_to_all_single = counted
    for epoch in range(steps):
        before = ranks.bytes_exchanged
        losses.append(trainer.step(epoch))
        sent.append(ranks.bytes_exchanged - before)
    dist.all_to_all_single = plain
    return {
        "losses": torch.stack(losses),
        "gradients": [one.grad for one in trainer.model.parameters()],
        "state": trainer.model.state_dict(),
        "accuracy": trainer.evaluate(),
        "bytes": sent,
        "handed": handed,
        "expected_bytes": trainer.step_bytes(),
    }


def batch(number):
    """A mini-batch: features, edges and labels of a graph of its own."""
    graph = synthetic_graph(NODES, 200, WIDTH, CLASSES, seed=10 + number)
    row = torch.arange(NODES).repeat_interleave(graph.adjacency.degree.long())
    edges = torch.stack([graph.adjacency.column.long(), row])
    return graph.features, edges, graph.labels


class BatchModel(nn.Module):
    """Two convolutions that add up neighbours, with what users put between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 32), nn.Linear(32, CLASSES)
        self.norm = nn.LayerNorm(32)

    def forward(self, x, edges):
        sender, receiver = edges
        x = self.first(x.index_add(0, receiver, x[sender]))
        x = functional.relu(self.norm(x))
        return self.second(x.index_add(0, receiver, x[sender]))


def batch_model(bits, seed):
    """With the same parameters always; bits None: as PyTorch keeps it."""
    torch.manual_seed(0)
    model = BatchModel()
    if bits is None:
        return model
    return compress(model, CompressionConfig(bits, seed=seed))


def batch_gradients(model, batches):
    """Gradients of the mean loss over the nodes of all batches."""
    starts = [NODES * i for i in range(len(batches))]
    edges = [one[1] + start for one, start in zip(batches, starts, strict=True)]
    output = model(torch.cat([one[0] for one in batches]), torch.cat(edges, dim=1))
    functional.cross_entropy(output, torch.cat([one[2] for one in batches])).backward()
    return [one.grad for one in model.parameters()]


def data_parallel():
    """By bits: one start of a group, because that takes longest."""
    rank, found = dist.get_rank(), {}
    for bits in (None, 32, 2):
        model = nn.parallel.DistributedDataParallel(batch_model(bits, seed=rank))
        found[bits] = batch_gradients(model, [batch(rank)])
    return found


def add(number):
    ranks = Ranks.joined()
    return ranks.rank, int(ranks.add_up(torch.tensor([number + ranks.rank])))


def fail_on_rank_1(how):
    """The other waits for it."""
    if dist.get_rank() == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("rank 1 says why")
    time.sleep(60)


def sleep(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def checkpointed(plan, kill=None):
    """Train by a plan; rank 1 kills itself at the start of step `kill`."""
    ranks = Ranks.joined()
    if kill is not None and ranks.rank == 1:
        step = PartTrainer.step

        def deadly(trainer, epoch):
            if epoch == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(trainer, epoch)

        PartTrainer.step = deadly
    train_by_plan(plan, ranks, torch.device("cpu"))


def hold(graph_name, owner_name, run, methods, bits):
    """Bytes that a rank holds, keeps by each method, and sends in a step."""
    graph = GRAPHS[graph_name]()
    part, ranks = my_part(graph, OWNERS[owner_name](dist.get_world_size()))
    kept = []
    for method in methods:
        given = replace(run, method=method)
        trainer = PartTrainer(given, part, ranks, Wire(bits, "false"), 0)
        trainer.step(0)
        resident = [getattr(part, field.name) for field in fields(part)]
        resident = [one for one in resident if isinstance(one, torch.Tensor)]
        resident += trainer.aggregation.tensors()
        resident += [one for _, one in trainer.aggregation._kept.values()]
        others = [*trainer.model.parameters(), *trainer.model.buffers(), trainer.seeds]
        seen = []

        def pack(tensor, seen=seen):
            seen.append(tensor)
            return tensor

        trainer.halo.start(trainer.wire_seeds[1])
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.model(part.features, trainer.aggregation, trainer.seeds[1])
        known = resident + others
        kept.append(resident_bytes(known + seen) - resident_bytes(known))
    ranks.bytes_exchanged = ranks.bytes_added_up = 0
    trainer.step(1)
    return {
        "kept": kept,
        "sent": ranks.bytes_exchanged,
        "summed": ranks.bytes_added_up,
        "resident": resident_bytes(resident),
    }
