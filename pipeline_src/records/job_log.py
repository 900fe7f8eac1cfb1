"""The log of one job: what was asked, with which versions, where, and what it came to.

Every job writes its log through `job_log`, so all logs begin and end alike, and a job
that fails ends its log with one paragraph that names the job, the cause and the remedy.
"""

import json
import logging
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline_src.records.versions import package_versions

OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|bad_alloc"
    r"|(can't|cannot|unable to) allocate",
    re.IGNORECASE,
)
ASKED_FOR = re.compile(
    r"(?:tried to|unable to) allocate ([\d.]+ ?(?:bytes|[KMGT]i?B))", re.IGNORECASE
)
PROCESS_STATUS = Path("/proc/self/status")  # of Linux
MIB = 1 << 20

log = logging.getLogger(__name__)


class Named(Protocol):
    """Values with names."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Each name with its value."""


class Job(Protocol):
    """What a job knows of itself: the object that a workflow injects into a script."""

    rule: str  # which kind of job
    wildcards: Named  # which of its kind
    params: Named  # what it was asked for
    config: Mapping[str, Any]  # with the key "device"
    log: Sequence[str]  # the path of its log


@contextmanager
def job_log(job: Job, *, echo: bool = False) -> Iterator[None]:
    """Log to its file what a job is, what it says, and how it ends.

    Args:
        job: whose log it is.
        echo: whether lines are shown in the terminal as well.

    Raises:
        SystemExit: if the block fails; why stands at the end of the log.
    """
    name = " ".join([job.rule, *dict(job.wildcards.items()).values()])
    handlers: list[logging.Handler] = [
        logging.FileHandler(job.log[0], encoding="utf-8")
    ]
    handlers += [logging.StreamHandler()] if echo else []
    logging.raiseExceptions = False  # a full disk is told of once, at the end
    logging.basicConfig(handlers=handlers, level=logging.INFO, format="%(message)s")
    log.info("job: %s", name)
    log.info("spec: %s", json.dumps(_decoded(dict(job.params.items())), sort_keys=True))
    log.info("versions: %s", _versions())
    start = time.monotonic()
    failure = None
    try:
        yield
    except Exception as error:
        log.exception("traceback:")
        failure = error
    finally:
        log.info("device: %s", _device(job.config["device"]))
        log.info("peak memory: %s", _peak_memory())
        log.info("time: %.1f s", time.monotonic() - start)
    if failure is not None:
        message = f"FAILED {name}\n{explain(failure)}"
        log.error(message)
        if not echo:  # the log may be on the disk that is full
            print(message, file=sys.stderr)
        raise SystemExit(1)


def explain(error: Exception) -> str:
    """The cause, and the remedy where the error itself does not know it."""
    text = str(error)
    if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(text):
        return f"{type(error).__name__}: {text}"
    asked = ASKED_FOR.search(text)
    needed = f"it asked for another {asked[1]}" if asked else "how much is not known"
    return (
        f"Out of memory: {needed}; the peak until then stands above. Use policy: lean,"
        " fewer bits, a smaller model or a smaller graph, run fewer jobs at once"
        " (--cores), or ask the cluster for more (--set-resources RULE:mem_mb=...)."
        " Seeds that were finished are kept."
    )


def _decoded(value: Any) -> Any:
    """Parameters that are JSON texts, as what they say."""
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_decoded(part) for part in value]
    return json.loads(value) if str(value).startswith("{") else value


def _versions() -> str:
    packages = [f"{name} {version}" for name, version in package_versions().items()]
    return ", ".join([f"python {platform.python_version()}", *packages])


def _device(wish: str) -> str:
    """Name of the device that was used; jobs that load no torch compute on the CPU."""
    if "torch" not in sys.modules:
        return "cpu"
    from pipeline_src.records.devices import describe_device, resolve_device

    return describe_device(resolve_device(wish))


def _peak_memory() -> str:
    """Of this process, and of its tensors on a GPU."""
    try:
        status = PROCESS_STATUS.read_text(encoding="utf-8")
        (line,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
        text = f"{int(line) / 1024:.0f} MiB of the process"
    except (OSError, ValueError):
        text = "not measured"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        reserved = torch.cuda.max_memory_reserved() / MIB
        text += f", {reserved:.0f} MiB reserved on the GPU"
    return text
