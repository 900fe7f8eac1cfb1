"""A run that diverges or needs too much memory fails alone, and says why."""

import json
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from workplace import FP32, LEAN, TINY, Workplace, copy_of, lost_results

from pipeline_src.records.job_log import explain, job_log

WILD = """
  wild: {layer: sage, num_layers: 16, hidden: 8, batch_norm: false}
  wide: {layer: sage, num_layers: 3, hidden: 65536}
methods:"""
SWEEPS = """
  - {graphs: [digits], models: [wild], methods: [fp32], seeds: 1,
     training: {epochs: 3, learning_rate: 1000}}
  - {graphs: [digits], models: [wide], methods: [fp32], seeds: 1,
     training: {epochs: 1}}
figures:"""
FAILING = TINY.replace("\nmethods:", WILD).replace("\nfigures:", SWEEPS)
DIVERGED = "results/tiny/runs/digits-wild-fp32-s0to0.nc"
LARGE = "results/tiny/runs/digits-wide-fp32-s0to0.nc"
ADDRESSES = 6 << 30  # bytes; weights between the layers of "wide" take 16 GiB


def end_of_log(text):
    return text.partition("FAILED")[2]


@pytest.fixture
def workplace(undisturbed, tmp_path):
    workplace = copy_of(undisturbed, tmp_path / "copy", FP32)
    (workplace / "config" / "config.yaml").write_text(FAILING)
    return workplace


def test_a_diverging_run_fails_alone_and_names_run_epoch_and_remedy(
    undisturbed, workplace: Workplace, count_fault
):
    """--keep-going is in the profile: the sound run is finished all the same."""
    text = workplace.run(DIVERGED, FP32, exit_status=1)
    assert re.search(
        r"FAILED train_run digits-wild-fp32-s0to0\n.*digits-wild-fp32-s0to0 seed 0: .*"
        r" after epoch \d\. Lower learning_rate or set gradient_clip\.",
        text,
    )
    assert "logs/train_run/digits-wild-fp32-s0to0.log" in text
    log = workplace / "results/tiny/logs/train_run/digits-wild-fp32-s0to0.log"
    end = log.read_text().strip().splitlines()[-2:]
    assert end[0] == "FAILED train_run digits-wild-fp32-s0to0"
    assert end[1].endswith("Lower learning_rate or set gradient_clip.")
    assert not (workplace / DIVERGED).exists()
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("a run diverges", trials=1, lost_results=lost)


def test_a_run_without_enough_memory_names_itself_and_the_remedies(
    undisturbed, workplace, count_fault
):
    """Addresses are limited for Snakemake and its jobs, so that allocating fails."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    text = workplace.run(LARGE, exit_status=1, preexec_fn=limit)
    message = end_of_log(text)
    assert message.startswith(" train_run digits-wide-fp32-s0to0\nOut of memory:")
    assert re.search(r"it asked for another \d+ bytes", message)
    assert "policy: lean, fewer bits, a smaller model or a smaller graph" in message
    assert not (workplace / LARGE).exists()
    lost = lost_results(workplace, undisturbed, LEAN)
    count_fault("a run is out of memory", trials=1, lost_results=lost)


TOO_MUCH = 1 << 46  # bytes


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.empty(TOO_MUCH, np.uint8),
        pytest.param(
            lambda: torch.empty(TOO_MUCH, dtype=torch.uint8, device="cuda"),
            marks=pytest.mark.gpu,
        ),
    ],
    ids=["torch", "numpy", "cuda"],
)
def test_out_of_memory_says_how_much_was_asked_for(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as failure:
        allocate()
    message = explain(failure.value)
    assert re.match(r"Out of memory: it asked for another [\d.]+ ?\w+;", message)
    assert "policy: lean" in message


def test_an_error_of_another_kind_is_told_as_it_is():
    assert explain(ValueError("bits must be 2")) == "ValueError: bits must be 2"
    assert "how much is not known" in explain(MemoryError())


# --- the log ------------------------------------------------------------------------

HEADING = ("job: ", "spec: ", "versions: ", "device: ", "peak memory: ", "time: ")


def test_every_log_of_a_run_holds_spec_versions_device_and_memory(undisturbed):
    logs = list((undisturbed / "results/tiny/logs").rglob("*.log"))
    assert {log.stem for log in logs} >= {"digits", "collect_runs", Path(FP32).stem}
    for log in logs:
        lines = log.read_text().splitlines()
        for heading in HEADING:
            (line,) = [line for line in lines if line.startswith(heading)]
            assert line.removeprefix(heading)
        (spec,) = [line for line in lines if line.startswith("spec: ")]
        if log.stem == Path(FP32).stem:  # as what it says, not as a text in a text
            asked = json.loads(spec.removeprefix("spec: "))["spec"]
            assert asked["training"]["epochs"] == 3
        (peak,) = [line for line in lines if line.startswith("peak memory")]
        assert 20 < int(re.findall(r"\d+", peak)[0]) < 4000, "MiB of a small job"


def test_a_log_of_a_failure_ends_with_job_cause_and_remedy(tmp_path, capsys):
    """And the terminal has the same, should the log be lost."""
    job = SimpleNamespace(
        rule="train_run",
        wildcards={"cell": "cell7"},
        params={"spec": '{"bits": 2}', "texts": ['{"a": 1}']},
        config={"device": "cpu"},
        log=[str(tmp_path / "job.log")],
    )
    with pytest.raises(SystemExit) as end, job_log(job):
        raise ValueError("bits must be 2; set bits")
    assert end.value.code == 1
    assert "FAILED train_run cell7\nValueError: bits must be" in capsys.readouterr().err
