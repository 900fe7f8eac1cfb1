"""A training over ranks that is interrupted, and goes on to the same numbers."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import rank_cases
import torch
from checkouts import planned, snakemake

from pipeline_src.distributed.jobs.checkpoints import Checkpoints
from pipeline_src.distributed.jobs.launch import launch, start_command
from pipeline_src.distributed.jobs.local import run_on_ranks
from pipeline_src.distributed.parts import cut
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.runs import train_part
from pipeline_src.distributed.train import Place, Plan, read_plan
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.distributed.wire import Wire
from pipeline_src.graphs.files import write_graph

EPOCHS = 8
SPEC = replace(
    rank_cases.spec("sage", True, "exact", 2, dropout=0.5, epochs=EPOCHS), seeds=(0, 1)
)


@pytest.fixture
def plan(tmp_path):
    """Dropout, codes of activations and a coded wire: all that is drawn."""
    write_graph(rank_cases.planted(), tmp_path / "graph.npz")
    folder = tmp_path / "checkpoints"
    record = tmp_path / "record.json"
    return Plan(SPEC, tmp_path / "graph.npz", "range", 2, folder, 3, record)


def read(plan):
    return json.loads(plan.record.read_text(encoding="utf-8"))


def kept_epochs(plan, seed=0):
    return {path.name for path in (plan.checkpoints / f"seed{seed}").iterdir()}


@pytest.mark.parametrize("kill", [1, 7])
def test_a_killed_rank_changes_nothing_in_the_end(plan, kill):
    """Before the first checkpoint, and between two of them."""
    run_on_ranks(rank_cases.checkpointed, 2, plan)
    whole = read(plan)
    other = replace(plan, checkpoints=plan.checkpoints / "again")
    other.record.unlink()
    with pytest.raises(RuntimeError, match="rank 1 died"):
        run_on_ranks(rank_cases.checkpointed, 2, other, kill)
    assert not other.record.exists()
    if kill == 7:
        assert kept_epochs(other) == {"epoch6-rank0of2.npz", "epoch6-rank1of2.npz"}
    run_on_ranks(rank_cases.checkpointed, 2, other)
    assert read(other) == whole
    assert whole["seeds"]["0"]["loss_curve"] != whole["seeds"]["1"]["loss_curve"]


def alone(folder, key="key", every=3, epochs=EPOCHS, rank_of=(0, 1)):
    run = rank_cases.spec(dropout=0.5, epochs=epochs)
    nodes = torch.zeros(rank_cases.NODES, dtype=torch.int64)
    (part,) = cut(rank_cases.planted(), nodes, 1)
    trainer = PartTrainer(run, part, Ranks(*rank_of), Wire(), 0)
    return Checkpoints(folder, key, trainer, every)


def test_only_the_newest_checkpoint_stays(tmp_path):
    checkpoints = alone(tmp_path)
    assert checkpoints.resume() is None
    seen = []

    def after(curves):
        checkpoints.after_epoch(curves)
        seen.append({path.name for path in tmp_path.iterdir()})

    train_part(checkpoints.trainer, None, after)
    newest = [0, 0, 3, 3, 3, 6, 6, 8]
    assert seen == [{f"epoch{n}-rank0of1.npz"} if n else set() for n in newest]


def test_all_ranks_go_on_from_what_all_of_them_have(tmp_path, monkeypatch):
    """One died between the others' writing and its own: they go one back."""
    checkpoints = alone(tmp_path)
    kept = []
    monkeypatch.setattr(Path, "unlink", lambda path: kept.append(path.name))
    train_part(checkpoints.trainer, None, checkpoints.after_epoch)
    again = alone(tmp_path)
    monkeypatch.setattr(Checkpoints, "_least", lambda self, newest: min(newest, 6))
    before = again.resume()
    assert len(before.losses) == 6
    after = train_part(again.trainer, before)
    monkeypatch.undo()
    whole = alone(tmp_path / "none")
    assert torch.equal(after.losses, train_part(whole.trainer).losses)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    first = alone(tmp_path, "one")
    train_part(first.trainer, None, first.after_epoch)
    with pytest.raises(ValueError, match=r"another training \(expected key two, got"):
        alone(tmp_path, "two").resume()
    with pytest.raises(ValueError, match="each 1 or more epochs, got 0"):
        alone(tmp_path, every=0)


def test_the_key_changes_with_all_that_changes_a_number(plan):
    others = [
        replace(plan, partition="metis"),
        replace(plan, wire_bits=4),
        replace(plan, spec=replace(SPEC, graph="other")),
    ]
    keys = {plan.key(2), plan.key(3), *(one.key(2) for one in others)}
    assert len(keys) == 5
    assert replace(plan, every=1, record=Path("other")).key(2) == plan.key(2)


def test_a_place_is_read_as_torchrun_and_slurm_set_it():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert Place.from_environment(torchrun | slurm) == Place(3, 4, 1)
    assert Place.from_environment(slurm) == Place(2, 4, 0)
    with pytest.raises(ValueError, match="start it by torchrun --nproc-per-node N"):
        Place.from_environment({"RANK": "0"})


def test_a_command_line_says_the_whole_plan(plan):
    command = start_command(plan, 2, "srun --cpu-bind=none")
    assert command[:3] == ["srun", "--cpu-bind=none", "--ntasks=2"]
    (plan.checkpoints).mkdir()
    (plan.checkpoints / "spec.json").write_text(SPEC.to_params(), encoding="utf-8")
    found = read_plan(command[command.index("--graph") :])
    assert found.key(2) == plan.key(2)
    assert replace(found, spec=plan.spec) == plan
    assert found.spec.device == "cpu"


@pytest.mark.slow
def test_torchrun_ends_with_a_message_and_the_same_command_goes_on(plan):
    training = replace(SPEC.training, epochs=100)
    plan = replace(plan, spec=replace(SPEC, seeds=(0,), training=training))
    run_on_ranks(rank_cases.checkpointed, 2, plan)
    whole = read(plan)
    other = replace(plan, checkpoints=plan.checkpoints / "again", every=1)
    other.record.unlink()
    other.checkpoints.mkdir()
    (other.checkpoints / "spec.json").write_text(plan.spec.to_params(), "utf-8")
    process = subprocess.Popen(
        start_command(other, 2),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    victim = rank_process(process.pid, "1")
    until = time.monotonic() + 60
    while not list(other.checkpoints.glob("seed0/*")) and time.monotonic() < until:
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    text, _ = process.communicate(timeout=60)
    assert process.returncode
    assert re.search(
        r"rank 0 of 2 lost another rank: .*\n.* Run the same command", text
    )
    assert not other.record.exists()
    launch(other, 2)
    assert read(other)["seeds"] == whole["seeds"]


def rank_process(parent, rank):
    """The child of torchrun that is a rank."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in psutil.Process(parent).children(recursive=True):
            if child.environ().get("RANK") == rank:
                return child
        time.sleep(0.01)
    raise AssertionError(f"no rank {rank}")


CELL = "results/default/distributed/digits-sage-2x64-{}-s0to4-2ranks-2bits.json"


def test_a_record_that_is_named_is_planned(checkout):
    found = planned(CELL.format("fp32"), cwd=checkout)
    assert found == {"prepare_graph": 1, "train_distributed": 1}


def test_a_method_that_ranks_cannot_train_by_is_refused_before_any_job(checkout):
    text = snakemake("-n", CELL.format("lean"), cwd=checkout, exit_status=1)
    assert "keeps activations by policy full or exact, got 'lean'" in text
