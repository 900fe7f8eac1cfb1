"""Before the first job and after the last: claims, warnings, the summary."""

import contextlib
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline_src.quant.compilers import plain_kernels_warning
from pipeline_src.records.claims import (
    UNKNOWN,
    ClaimedError,
    claim,
    holder_of,
    withdraw,
)
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.markdown import as_shown

# Held by the workflow at work on these results; Snakemake's own locks outlive a kill.
CLAIM = Path(".snakemake") / "claims" / CONFIG["run"]
LOCKS = Path(".snakemake") / "locks"


def forget_dead_workflows():
    """Remove the lock that a killed workflow left, if none is at work in this folder."""
    if not workflow.is_main_process:
        return
    with contextlib.suppress(OSError):  # a read-only folder can be looked at
        CLAIM.parent.mkdir(parents=True, exist_ok=True)
        CLAIM.touch()
    holders = {path.name: holder_of(path) for path in CLAIM.parent.glob("*")}
    alive = {run: holder for run, holder in holders.items() if holder}
    if not alive:
        shutil.rmtree(LOCKS, ignore_errors=True)
    for run, holder in alive.items():
        print(f"Note: {told(run, holder)}", file=sys.stderr)


def told(run, holder):
    """What a second start on these results can do."""
    if holder.startswith(UNKNOWN):
        return (
            f"results/{run} may be in the making by {holder}. Wait for it, or give this"
            " start a name of its own with --config run=NAME. If that process has been"
            " killed, --unlock takes away what it left."
        )
    return (
        f"results/{run} is being made by {holder}. A second start on it is refused"
        " until that one ends: wait, or stop it, or give this one a name of its own"
        " with --config run=NAME. Do not use --unlock."
    )


def claim_results():
    """Refuse to work on results that another makes, or where nothing can be written."""
    results = Path("results") / CLAIM.name
    try:
        write_whole(results / ".writable", "")
        (results / ".writable").unlink()
    except OSError as error:
        raise WorkflowError(f"{results} is of no use: {error}") from None
    try:
        claim(CLAIM)
    except ClaimedError as error:
        raise WorkflowError(
            f"results/{CLAIM.name} is being made already: {error}. Wait until it"
            " ends, or stop it, or give this one a name of its own with"
            " --config run=NAME"
        ) from None


def warn_of_plain_kernels():
    """Once, before the first job; jobs ask for themselves, perhaps elsewhere."""
    warning = plain_kernels_warning(CONFIG["compile"])
    if warning and not GPUS:
        print(f"Warning: {warning}", file=sys.stderr)


def print_summary():
    """The tables that most readers want first, in the terminal."""
    results = Path("results") / CONFIG["run"]
    untrained = [
        *(["selected_bits"] if FEATURES else []),
        *(["activation_settings"] if SEARCHES else []),
    ] or ["training"]
    for table in ["accuracy", "memory"] if CELLS else untrained:
        path = results / "tables" / f"{table}.md"
        if path.exists():
            print(as_shown(path.read_text(encoding="utf-8")))
    print(f"Everything is below {results}; start with {results / 'report.html'}.")


forget_dead_workflows()


onstart:
    claim_results()
    warn_of_plain_kernels()


onsuccess:
    print_summary()
    withdraw()


onerror:
    withdraw()
