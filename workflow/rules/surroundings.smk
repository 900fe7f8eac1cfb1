"""What surrounds a run: the checkout, its interpreter, a user, places that can be used.

It comes first. What it sets is inherited by every job; what cannot be made to work is
refused before anything else is read, in one line with the way out.
"""

import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parents[1]
if not ROOT.is_dir():
    raise WorkflowError(
        f"The workflow lies in {ROOT}, but it needs the library beside it: clone the"
        " repository, and name the clone's workflow/Snakefile, in `module:` too"
    )
sys.path.insert(0, str(ROOT))

from pipeline_src.records.claims import can_lock

SEARCHED = {"PATH": Path(sys.executable).parent, "PYTHONPATH": ROOT}


def refuse_unusable_names():
    """A folder with a colon can be searched for nothing; some signs stand for names."""
    for folder in map(str, SEARCHED.values()):
        if os.pathsep in folder:
            raise WorkflowError(
                f"{folder!r} holds {os.pathsep!r}, which separates the folders of a"
                " search path, so no job could find what lies there: rename it, or"
                " move the checkout and its environment elsewhere"
            )
    if set("{}<>") & set(str(ROOT)):
        raise WorkflowError(
            f"{str(ROOT)!r}, the folder of the workflow, holds one of {{ }} < >, which"
            " Snakemake takes for names to fill in and knows no way to quote: rename"
            " the folder, or move the checkout elsewhere"
        )


def show_searched_folders():
    """Jobs find the interpreter that runs Snakemake, and the library."""
    for name, folder in SEARCHED.items():
        folders = os.environ.get(name, "").split(os.pathsep)
        if str(folder) != folders[0]:
            searched = os.pathsep.join([str(folder), *filter(None, folders)])
            os.environ.update({name: searched})
    # Snakemake does not quote the interpreter; its name alone is found all the same.
    if shlex.quote(sys.executable) != sys.executable:
        sys.executable = Path(sys.executable).name


def name_the_user():
    """Snakemake and torch ask for a name, which not every uid has."""
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        os.environ.setdefault("USER", f"uid{os.getuid()}")


def print_in_any_locale():
    """A character that the terminal cannot show is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def share_compiled_kernels():
    """One folder per checkout, where torch can use it; else the temporary folder.

    Torch locks files there, and calls the compiler by commands that it does not quote.
    """
    folder = ROOT / ".cache" / "inductor"
    if shlex.quote(str(folder)) == str(folder) and can_lock(folder):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def default_configuration():
    """That of the working folder, or the one beside the workflow."""
    own = Path("config", "config.yaml")
    return str(own if own.exists() else ROOT / own)


refuse_unusable_names()
show_searched_folders()
name_the_user()
print_in_any_locale()
share_compiled_kernels()
# Before netCDF4 is imported; pipeline_src/records/datasets.py says why.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
