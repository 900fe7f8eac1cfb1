"""The processes that train together, as one of them sees the others.

The two things that are ever sent: sums that all ranks need (`add_up`), and rows that a
neighbour needs (`exchange`). Bytes are counted where they are handed over, and nowhere
else. A single process needs no process group and sends nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch import distributed as dist


class LostRankError(RuntimeError):
    """A rank that was to take part in something sent is gone, or did not answer."""


class Ranks:
    """One rank among `size`; torch's default process group carries what is sent."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """Name a rank.

        Raises:
            ValueError: if there is more than one rank and no process group of so many.
        """
        joined = dist.get_world_size() if dist.is_initialized() else 1
        if size != joined:
            raise ValueError(
                f"{size} ranks need torch.distributed.init_process_group with a "
                f"world_size of {size}, got a group of {joined}"
            )
        self.rank = rank
        self.size = size
        self.bytes_exchanged = 0  # sent by this rank, in rows
        self.bytes_added_up = 0  # given by this rank to sums

    @classmethod
    def joined(cls) -> "Ranks":
        """This process in the default group; alone where there is none."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def add_up(
        self,
        x: Tensor,  # any shape, the same on all ranks
    ) -> Tensor:
        """The sum over ranks, in place: the same bits on all of them.

        Raises:
            LostRankError: if a rank is gone.
        """
        if self.size > 1:
            with self._noticing():
                dist.all_reduce(x)
            self.bytes_added_up += x.nbytes
        return x

    def exchange(
        self,
        rows: Tensor,  # (sum of num_sent, row_bytes) uint8, by receiver
        num_sent: Sequence[int],  # rows for each rank, none for itself
        num_received: Sequence[int],  # rows from each rank
    ) -> Tensor:
        """What the others sent, (sum of num_received, row_bytes) uint8, by sender.

        Raises:
            LostRankError: if a rank is gone.
        """
        received = rows.new_empty((sum(num_received), rows.shape[1]))
        if self.size > 1:
            with self._noticing():
                dist.all_to_all_single(
                    received, rows.contiguous(), list(num_received), list(num_sent)
                )
            self.bytes_exchanged += rows.nbytes
        return received

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise LostRankError(
                f"rank {self.rank} of {self.size} lost another rank: {reason}"
            ) from error
