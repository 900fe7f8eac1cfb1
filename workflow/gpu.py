"""`make gpu`: all that a machine with a GPU can tell, within ten minutes.

    python3 workflow/gpu.py [--device cpu] [--seconds 600] [--parts kernels training]

It runs on the machine's own Python, installs nothing and needs no network. Each part is
a process of its own, most important first; every part gets its share of the seconds
that are left, and where they would not do for all, the last are left out. What is
measured stays in results/gpu/DEVICE, whatever happens to later parts.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOM = "pipeline_src.measuring.gpu"
WIND_UP = 10.0  # seconds for the summary
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
CLOCKS_EVERY = 2.0  # seconds
OUTCOME = re.compile(r"^(tests/\S.*?) (PASSED|FAILED|SKIPPED|ERROR)\b")
SELECTED = re.compile(r"^collected .*?(\d+) selected")
LACKING = re.compile(r"^ERROR (\S+) - ModuleNotFoundError: No module named '(\w+)")


@dataclass(frozen=True)
class Part:
    """A share of the seconds, and the seconds without which it is not begun."""

    name: str
    share: float
    least: float
    needs: tuple[str, ...] = ("numpy",)


# Most important first: the last are left out first.
PARTS = (
    Part("agreement", 90, 15),
    Part("lean_agreement", 90, 15),
    Part("aggregation", 40, 15, ("numpy", "scipy")),
    Part("kernels", 130, 25),
    Part("training", 120, 25, ("numpy", "scipy")),
    Part("tests", 120, 25, ("numpy", "pytest", "hypothesis")),
    Part("products", 90, 30, ("numpy", "scipy")),
)


class Run:
    """Folder, device and the seconds left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Find the machine, and a folder that bears its device's name."""
        self.device = arguments.device
        self.plain = arguments.plain
        self.end = time.monotonic() + arguments.seconds
        self.machine = describe_machine(self.device)
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.machine["device"]).strip("-")
        if self.device == "cpu":
            name = f"rehearsal-{name}"
        self.folder = arguments.results / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.machine["driver"] = self.smi("driver_version") or "not known"
        text = json.dumps(self.machine, indent=2, sort_keys=True)
        (self.folder / "machine.json").write_text(text + "\n", encoding="utf-8")
        self.next_clocks = 0.0

    def left(self) -> float:
        """Seconds for parts that are left."""
        return self.end - WIND_UP - time.monotonic()

    def smi(self, query: str) -> str:
        """What nvidia-smi says of the device; empty where there is none."""
        if self.device != "cuda" or shutil.which("nvidia-smi") is None:
            return ""
        uuid = self.machine.get("uuid", "")
        which = [f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else []
        command = ["nvidia-smi", f"--query-gpu={query}", *which]
        command.append("--format=csv,noheader,nounits")
        try:
            found = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=5
            )
        except subprocess.TimeoutExpired:
            return ""
        return found.stdout.partition("\n")[0].strip() if not found.returncode else ""

    def note_clocks(self, part: str) -> None:
        """Add a line to clocks.csv, every few seconds."""
        if time.monotonic() < self.next_clocks:
            return
        self.next_clocks = time.monotonic() + CLOCKS_EVERY
        if clocks := self.smi(CLOCKS):
            self.add("clocks.csv", f"part,{CLOCKS}", f"{part},{clocks}")

    def add(self, name: str, header: str, line: str) -> None:
        """Add a line to a file, below a header."""
        path = self.folder / name
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{header}\n{line}\n" if is_new else f"{line}\n")

    def note(self, part: str, text: str) -> None:
        """Keep and show what a reader of the results must know."""
        quoted = text.replace('"', "'")
        self.add("notes.csv", "part,note", f'{part},"{quoted}"')
        print(f"  NOTE {part}: {text}", flush=True)


def describe_machine(device: str) -> dict[str, Any]:
    """What this Python has; ends the program where nothing can be measured."""
    command = [sys.executable, "-m", f"{ROOM}.part", "machine", "--device", device]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    if found.returncode:
        print(found.stderr, file=sys.stderr)
        raise SystemExit(
            f"make gpu: {sys.executable} cannot import torch or this project; name "
            "another Python: make gpu PYTHON=/path/to/python3"
        )
    machine: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    if machine["obstacle"]:
        raise SystemExit(f"make gpu: {machine['obstacle']}")
    return machine


def command_of(part: Part, run: Run, seconds: float) -> list[str]:
    """The command line of a part."""
    if part.name == "tests":
        files = [
            str(path.relative_to(ROOT))
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
        ]
        # No configuration: that of the project names options of a newer pytest.
        options = ["-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
        options += ["-m", "gpu", "-v", "-rsE", "--color=no", "--tb=short"]
        options += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
        options.append("--continue-on-collection-errors")
        return [sys.executable, "-m", "pytest", *options, *files]
    command = [sys.executable, "-m", f"{ROOM}.part", part.name]
    command += ["--device", run.device, "--folder", str(run.folder)]
    command += ["--name", run.machine["device"], "--seconds", f"{seconds:.0f}"]
    return command + ["--plain"] * (run.plain or not run.machine["compiles"])


def parts_that_fit(parts: Sequence[Part], left: float) -> list[Part]:
    """The first parts, as many as have their least seconds."""
    fitting = list(parts)
    while fitting and sum(part.least for part in fitting) > left:
        fitting.pop()
    return fitting


def run_part(part: Part, run: Run, limit: float) -> str:
    """Run a part; returns how it ended: done, failed or stopped."""
    # Its own deadline comes earlier: a step in progress is to end.
    command = command_of(part, run, 0.8 * limit)
    log = run.folder / f"{part.name}.log"
    environment = dict(os.environ)
    cache = str(ROOT / ".cache" / "inductor")
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
    environment["COLUMNS"] = "400"  # or pytest cuts its reasons short
    end = time.monotonic() + limit
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        shown = 0
        try:
            while child.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
                run.note_clocks(part.name)
                shown = show(log, shown)
        finally:
            running = child.poll() is None
            if running:  # with what it has started itself
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            show(log, shown)
    if running:
        run.note(part.name, f"stopped after {limit:.0f} s; what it had measured stays")
        return "stopped"
    return "done" if child.returncode == 0 else "failed"


def show(log: Path, start: int) -> int:
    """Print whole lines of a growing file from a place on; returns the next place."""
    with log.open("rb") as file:
        file.seek(start)
        text, newline, _ = file.read().rpartition(b"\n")
    if newline:
        print(text.decode(errors="replace"), flush=True)
    return start + len(text) + len(newline)


def keep_outcomes(run: Run, state: str) -> str:
    """Make tests.csv of what pytest has said; returns the state of the tests.

    A file that needs a package which is not here is named, and no failure.
    """
    lines = (
        (run.folder / "tests.log")
        .read_text(encoding="utf-8", errors="replace")
        .splitlines()
    )
    outcomes = [found.groups() for line in lines if (found := OUTCOME.match(line))]
    for test, outcome in outcomes:
        run.add("tests.csv", "test,outcome", f'"{test}",{outcome.lower()}')
    bad = [
        test for test, outcome in outcomes if outcome in ("FAILED", "ERROR", "XPASS")
    ]
    for line in lines:
        if (found := SELECTED.search(line)) and int(found[1]) > len(outcomes):
            missing = int(found[1]) - len(outcomes)
            run.note("tests", f"{missing} of {found[1]} tests did not run")
        elif found := LACKING.match(line):
            run.note("tests", f"{found[1]} is skipped: {found[2]} is not here")
        elif line.startswith("ERROR "):
            bad.append(line)
        elif line.startswith("SKIPPED "):
            run.note("tests", line)
    if bad or (state == "failed" and not outcomes):
        return "failed"
    return "stopped" if state == "stopped" else "done"


def main() -> None:
    """Run the parts and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--plain", action="store_true", help="compile nothing")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    run = Run(given)
    print(f"{run.machine['device']}: results in {run.folder}", flush=True)
    lacking = run.machine["lacking"]
    for name, use in lacking.items():
        run.note("machine", f"{name} is not here, which takes {use}")
    able = []
    states = dict.fromkeys(given.parts, "left out")
    for part in PARTS:
        if missing := sorted(set(part.needs) & set(lacking)):
            run.note(part.name, f"left out: {', '.join(missing)} is not here")
        elif part.name in given.parts:
            able.append(part)
    try:
        while able:
            fitting = parts_that_fit(able, run.left())
            for part in able[len(fitting) :]:
                run.note(part.name, "left out: the seconds do not do for it")
            if not fitting:
                break
            part, *able = fitting
            limit = run.left() * part.share / sum(one.share for one in fitting)
            print(f"{part.name}: {limit:.0f} s at most", flush=True)
            start = time.monotonic()
            states[part.name] = run_part(part, run, limit)
            if part.name == "tests":
                states[part.name] = keep_outcomes(run, states[part.name])
            seconds = time.monotonic() - start
            run.add(
                "parts.csv",
                "part,state,seconds",
                f"{part.name},{states[part.name]},{seconds:.0f}",
            )
    finally:
        command = [sys.executable, "-m", f"{ROOM}.summary", str(run.folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    print(f"summary: {run.folder / 'summary.md'}", flush=True)
    if "failed" in states.values():
        raise SystemExit("make gpu: a part failed, see above and the notes")


if __name__ == "__main__":
    main()
