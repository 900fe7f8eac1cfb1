"""Two workflows in one checkout, and what remains of one that died."""

import os
import signal

import pytest
from workplace import COLLECTED, FP32, LEAN, copy_of, kill, lost_results, wait_for

from pipeline_src.records.claims import ClaimedError, claim, holder_of


@pytest.mark.slow
def test_a_second_start_on_the_same_results_is_refused_with_the_way_out(
    undisturbed, tmp_path, count_fault
):
    """By a message, then by Snakemake's lock; without that lock by the claim."""
    workplace = copy_of(undisturbed, tmp_path / "copy", FP32, LEAN, COLLECTED)
    path = workplace / ".snakemake/claims/tiny"
    process = workplace.begin(COLLECTED)
    try:
        # The file may still name a holder that is gone, for a moment.
        name = f"process {process.pid} on "
        wait_for(lambda: (holder_of(path) or "").startswith(name), process)
        holder = holder_of(path)
        os.kill(process.pid, signal.SIGSTOP)  # at work for as long as this test looks
        text = workplace.run(COLLECTED, exit_status=1)
        assert "LockException" in text
        assert f"Note: results/tiny is being made by {holder}." in text
        assert "a name of its own with --config run=NAME. Do not use --unlock." in text
        assert "rule train_run" not in text
        workplace.run("--unlock")
        text = workplace.run(COLLECTED, exit_status=1)
        assert f"results/tiny is being made already: it is held by {holder}" in text
        assert "--config run=NAME" in text
        assert "localrule" not in text
        # Another name: the graph is there already, so nothing is made twice.
        other = FP32.replace("tiny", "other")
        text = workplace.run(other, "--config", "run=other")
        assert (workplace / other).exists()
        os.kill(process.pid, signal.SIGCONT)
        process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            kill(process)
    assert holder_of(path) is None
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("a second start on the same results", trials=2, lost_results=lost)


def test_a_claim_ends_with_its_process_whatever_kills_it(tmp_path):
    path = tmp_path / "claims" / "run"
    assert holder_of(path) is None
    ready, said = os.pipe()
    if (child := os.fork()) == 0:
        claim(path)
        os.write(said, b"1")
        signal.pause()
    os.read(ready, 1)
    assert holder_of(path).startswith(f"process {child} on ")
    with pytest.raises(ClaimedError, match=f"it is held by process {child} on "):
        claim(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert holder_of(path) is None
