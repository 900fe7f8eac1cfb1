"""Where a training over ranks goes on after it was interrupted.

Each rank writes its own file, so that nothing is asked of the file system that ranks
share, or do not. A file is written whole or not at all, and the ones before it are
removed only when every rank has written: whenever ranks die, some epoch is there on all
of them, and it is the least of the newest ones.

What is kept: parameters, running statistics, Adam's moments, the curves so far, and the
state of the generator that Dropout draws from. All else follows from the seed. So a
training that goes on gives the bits of one that was never interrupted.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline_src.distributed.runs import Curves
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.records.whole_files import written_whole


class Checkpoints:
    """The checkpoints of one rank of one training."""

    def __init__(
        self,
        folder: Path,
        key: str,  # changes with all that changes the training
        trainer: PartTrainer,
        every: int,  # epochs
    ) -> None:
        """Look at a folder that may not exist yet.

        Raises:
            ValueError: if every is not positive.
        """
        if every < 1:
            raise ValueError(f"a checkpoint is kept each 1 or more epochs, got {every}")
        self.folder, self.key, self.every = folder, key, every
        self.trainer = trainer
        ranks = trainer.ranks
        self._name = f"rank{ranks.rank}of{ranks.size}.npz"

    def resume(self) -> Curves | None:
        """Bring the trainer to where all ranks have been; None at the start.

        Raises:
            ValueError: if the folder holds the checkpoints of another training.
        """
        newest = max([epoch for epoch, _ in self._kept()], default=0)
        epoch = self._least(newest)
        if epoch == 0:
            return None
        path = dict(self._kept())[epoch]
        with np.load(path, allow_pickle=False) as file:
            kept = {name: torch.from_numpy(file[name]) for name in file.files[1:]}
            key = str(file["key"])
        if key != self.key:
            raise ValueError(
                f"{self.folder} holds checkpoints of another training (expected key "
                f"{self.key}, got {key}); name another folder, or remove it"
            )
        with torch.no_grad():
            for name, one in self._tensors().items():
                one.copy_(kept[name])
        torch.set_rng_state(kept["dropout"])
        if self._on_gpu:
            torch.cuda.set_rng_state(kept["dropout on the GPU"], self.trainer.device)
        return Curves(kept["losses"], kept["accuracies"])

    def after_epoch(self, curves: Curves) -> None:
        """Keep a checkpoint if it is time, and at the end."""
        epoch = len(curves.losses)
        if epoch % self.every and epoch != self.trainer.spec.training.epochs:
            return
        path = self.folder / f"epoch{epoch}-{self._name}"
        arrays = {name: one.cpu().numpy() for name, one in self._state(curves).items()}
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.array(self.key), **arrays)
        self._least(epoch)  # all ranks have written
        for _, older in list(self._kept()):
            if older != path:
                older.unlink()

    @property
    def _on_gpu(self) -> bool:
        return self.trainer.device.type == "cuda"

    def _tensors(self) -> dict[str, Tensor]:
        """What training changes, in place, by name."""
        moments = self.trainer.optimizer.state()
        return {
            **{f"model {n}": t for n, t in self.trainer.model.state_dict().items()},
            **{f"optimizer {i}": moment for i, moment in enumerate(moments)},
        }

    def _state(self, curves: Curves) -> dict[str, Tensor]:
        state = {
            **self._tensors(),
            "losses": curves.losses,
            "accuracies": curves.accuracies,
            "dropout": torch.get_rng_state(),
        }
        if self._on_gpu:
            device = self.trainer.device
            state["dropout on the GPU"] = torch.cuda.get_rng_state(device)
        return state

    def _kept(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.glob(f"epoch*-{self._name}"):
            yield int(path.name.partition("-")[0].removeprefix("epoch")), path

    def _least(self, number: int) -> int:
        """The least of what ranks give."""
        ranks = self.trainer.ranks
        given = torch.zeros(ranks.size, dtype=torch.int64, device=self.trainer.device)
        given[ranks.rank] = number
        return int(ranks.add_up(given).min())
