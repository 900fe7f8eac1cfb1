"""Full-batch training of one network by several processes, seen from one of them.

Each rank computes the nodes it owns. The loss is the mean over all training nodes: each
rank's share is the sum over its own, divided by the number of all. Gradients of the
parameters are added up over ranks, in one message, and each rank takes the same step of
Adam from the same parameters, so parameters never travel.

Everything random comes from the seed: parameters and the rounding of activations as in
training/trainer.py; Dropout and the wire draw anew on each rank.
"""

from typing import cast

import torch
from torch import Tensor

from pipeline_src.distributed.aggregation import Halo, part_aggregation
from pipeline_src.distributed.network import PartNetwork
from pipeline_src.distributed.parts import GraphPart
from pipeline_src.distributed.plans import refuse_run
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.wire import Wire
from pipeline_src.gnn.models import Keep
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.training.adam import Adam
from pipeline_src.training.networks import keeper_of
from pipeline_src.training.spec import BoundariesOf, RunSpec
from pipeline_src.training.trainer import LOWER, training_loss


class PartTrainer:
    """A network, its optimiser and one part of the graph, ready to take steps."""

    def __init__(
        self,
        spec: RunSpec,
        part: GraphPart,  # on the device to train on
        ranks: Ranks,
        wire: Wire,
        seed: int,
        boundaries_of: BoundariesOf | None = None,
    ) -> None:
        """Seed torch's global generators and build what the specification names.

        Raises:
            ValueError: if ranks cannot train the run, or the part is another rank's.
        """
        refuse_run(spec)
        self.spec, self.part, self.ranks = spec, part, ranks
        self.device = part.features.device
        shape = part_shape(spec, part)
        compile = resolve_compile(spec.compile, self.device)
        keeper = _keeper_of(spec, shape, boundaries_of, compile, self.device)
        torch.manual_seed(seed)
        self.model = PartNetwork(shape, ranks, keeper, compile).to(self.device)
        self.halo = Halo(part, ranks, wire)
        self.aggregation = part_aggregation(shape.layer, self.halo)
        if shape.layer == "sage":  # it aggregates features before anything else
            self.aggregation.keep_result_of(part.features)
        self.optimizer = Adam(
            self.model.parameters(),
            spec.training.learning_rate,
            spec.training.weight_decay,
        )
        # Drawn on the CPU, so that every device rounds alike, and for all ranks, so
        # that no two round by the same numbers. Those of the first rank are Trainer's.
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.randint(-(2**31), 2**31, size, generator=generator)[ranks.rank]
            for count in (self.model.num_seeds, self.model.num_exchanges)
            for size in [(ranks.size, spec.training.epochs, count)]
        ]
        self.seeds, self.wire_seeds = (
            one.to(torch.int32).to(self.device) for one in drawn
        )
        if ranks.size > 1:  # each rank drops other activations
            of_dropout = torch.randint(2**31, (ranks.size,), generator=generator)
            torch.manual_seed(int(of_dropout[ranks.rank]))

    def loss(self, epoch: int) -> Tensor:
        """This rank's share of the loss, with its graph for backward."""
        self.model.train()
        self.halo.start(self.wire_seeds[epoch])
        output = self.model(self.part.features, self.aggregation, self.seeds[epoch])
        train = self.part.train_index
        if not train.numel():  # takes part in what is sent all the same
            return 0 * output.sum()
        mean = training_loss(
            output[train], self.part.labels[train], self.spec.training.loss
        )
        return mean * (train.numel() / self.part.num_in_splits[0])

    def step(self, epoch: int) -> Tensor:
        """One training step; returns the loss over all training nodes."""
        self.optimizer.zero_grad()
        loss = self.loss(epoch)
        loss.backward()
        self.add_up_gradients()
        if self.spec.training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.spec.training.gradient_clip
            )
        self.optimizer.step()
        return self.ranks.add_up(loss.detach())

    def step_bytes(self) -> int:
        """Bytes that this rank sends in the exchanges of one step, from counts alone.

        Forward sends own rows, backward halo rows.
        """
        forward, backward = (
            sum(map(self.halo.wire.row_bytes, widths))
            for widths in self.model.sent_widths()
        )
        return forward * sum(self.part.num_sent) + backward * self.part.num_halo

    def add_up_gradients(self) -> None:
        """Make the parameters' gradients those of the loss over all ranks."""
        gradients = [cast(Tensor, one.grad) for one in self.model.parameters()]
        flat = self.ranks.add_up(torch.cat([one.view(-1) for one in gradients]))
        sizes = [one.numel() for one in gradients]
        for one, total in zip(gradients, flat.split(sizes), strict=True):
            one.copy_(total.view_as(one))

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Train, validation and test accuracy over all ranks, (3,).

        In full precision: halo rows travel as float32.
        """
        self.model.eval()
        self.halo.start(None)
        output = self.model(self.part.features, self.aggregation)
        is_right = output.argmax(dim=1) == self.part.labels
        right = torch.stack(
            [is_right[index].sum() for index in self.part.splits.values()]
        )
        total = self.ranks.add_up(right.double())
        return (total / total.new_tensor(self.part.num_in_splits)).float()

    def check_finite(self, loss: Tensor, epoch: int) -> None:
        """Raise on all ranks if anything was NaN or infinite on any of them.

        Raises:
            FloatingPointError: naming the epoch and the remedy.
        """
        state = self.model.state_dict().values()
        is_finite = [one.isfinite().all() for one in state]
        is_finite += [self.model.finite.all(), loss.isfinite().all()]
        num_bad = self.ranks.add_up((~torch.stack(is_finite)).sum().double())
        if num_bad:
            raise FloatingPointError(
                f"NaN or infinity in the loss, an activation or a weight after epoch "
                f"{epoch + 1}. {LOWER}"
            )


def part_shape(spec: RunSpec, part: GraphPart) -> NetworkShape:
    """The shape that a model takes on a graph, known from any of its parts."""
    model = spec.model
    return NetworkShape(
        model.layer,
        part.num_features,
        model.hidden,
        part.num_classes,
        model.num_layers,
        model.dropout,
        model.batch_norm,
    )


def _keeper_of(
    spec: RunSpec,
    shape: NetworkShape,
    boundaries_of: BoundariesOf | None,
    compile: str,
    device: torch.device,
) -> Keep | None:
    keeper = keeper_of(spec.method, shape, boundaries_of, compile, device)
    return cast("Keep | None", keeper)  # of these policies
