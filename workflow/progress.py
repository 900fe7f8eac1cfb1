"""What a running workflow has done, in a second terminal, also over ssh.

    snakemake --cores all ... &  python workflow/progress.py

reads Snakemake's newest log in .snakemake/log and the logs of the running trainings in
it, and writes nothing. For each rule it counts jobs that are done, running, failed and
waiting; of each running training it tells the seeds and epochs; and it estimates the
time that is left from the jobs of each rule that this call of Snakemake has finished.
"""

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

DATE = re.compile(r"\[(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})\]")
START = re.compile(r"(?:local)?(?:rule|checkpoint) (\w+):")
ERROR = re.compile(r"Error in (?:rule|group) (\w+)")
FINISH = re.compile(r"Finished jobid: (\d+) \(Rule: (\w+)\)")
DETAIL = re.compile(r"    (jobid|log|wildcards): (.*)")
COUNT = re.compile(r"(\w+) +(\d+)")
EPOCH = re.compile(r"seed (\d+): (?:resumed|epoch (\d+) of (\d+))")
SEEDS = re.compile(r"-s(\d+)to(\d+)$")


@dataclass
class Job:
    """One job that has been started."""

    rule: str
    started: float  # seconds since 1970
    name: str = ""  # values of its wildcards
    log: str = ""
    state: str = "running"  # or "done" or "failed"
    seconds: float = 0.0  # that a job which is done took


@dataclass
class Run:
    """One call of Snakemake, as far as its log goes."""

    planned: Counter[str] = field(default_factory=Counter)  # jobs by rule
    jobs: dict[str, Job] = field(default_factory=dict)  # by Snakemake's number
    ended: bool = False

    def count(self, state: str, rule: str | None = None) -> int:
        """Jobs in this state, of one rule or of all that are planned."""
        rules = self.planned if rule is None else (rule,)
        jobs = (job for job in self.jobs.values() if job.rule in rules)
        return sum(job.state == state for job in jobs)

    def waiting(self, rule: str) -> int:
        """Jobs of a rule that have not been started."""
        return self.planned[rule] - sum(job.rule == rule for job in self.jobs.values())

    def seconds_a_job(self, rule: str) -> float | None:
        """Mean over the jobs of a rule that are done; None before the first."""
        jobs = [job for job in self.jobs.values() if job.rule == rule]
        taken = [job.seconds for job in jobs if job.state == "done"]
        return sum(taken) / len(taken) if taken else None


def read_log(text: str) -> Run:
    """What Snakemake's log tells of its jobs; a job that is retried runs again."""
    run, date, job, in_plan = Run(), 0.0, Job("", 0.0), False
    for line in text.splitlines():
        if match := DATE.match(line):
            date = datetime.strptime(match[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif match := START.fullmatch(line):
            job = Job(match[1], date)
        elif match := ERROR.match(line):
            job = Job(match[1], date, state="failed")
        elif match := DETAIL.match(line):
            _add_detail(run, job, match[1], match[2])
        elif match := FINISH.match(line):
            done = run.jobs[match[1]]
            done.state, done.seconds = "done", date - done.started
        elif line.startswith("Job stats:"):
            in_plan = True
        elif in_plan and (match := COUNT.fullmatch(line.strip())):
            in_plan = match[1] != "total"
            # The target itself is no work.
            planned = match[1] not in ("all", "total")
            run.planned.update({match[1]: int(match[2])} if planned else {})
        elif line.startswith("Complete log"):
            run.ended = True
    return run


def _add_detail(run: Run, job: Job, name: str, value: str) -> None:
    """One indented line below the start of a job, or below its failure."""
    if name == "jobid" and job.state == "failed":
        if value in run.jobs:
            run.jobs[value].state = "failed"
    elif name == "jobid":
        run.jobs[value] = job
    elif name == "log":
        job.log = value.split(", ")[0]
    else:
        job.name = ", ".join(part.partition("=")[2] for part in value.split(", "))


def seeds_of(name: str, log: str) -> tuple[int, int, float] | None:
    """Seeds done, seeds in all, and the share of the work done; None without seeds.

    A job that was started again begins with its first seed again, so what an earlier
    attempt wrote into the same log does not count.
    """
    named = SEEDS.search(name)
    if not named:
        return None
    num_seeds = int(named[2]) - int(named[1]) + 1
    done: set[str] = set()
    place, part = (-1, -1.0), 0.0
    for seed, epoch, of in EPOCH.findall(log):
        share = int(epoch) / int(of) if of else 1.0
        if (int(seed), share) <= place:
            done.clear()
        place, part = (int(seed), share), share % 1
        done |= {seed} if share == 1 else set()
    return len(done), num_seeds, (len(done) + part) / num_seeds


def time_left(run: Run, shares: dict[str, float], now: float) -> tuple[float, int]:
    """Estimated seconds, and the number of jobs of which nothing is known yet.

    Args:
        run: what the log tells.
        shares: work done of running jobs, by their numbers, where it is known.
        now: seconds since 1970.
    """
    left, unknown = [0.0], 0
    for number, job in run.jobs.items():
        if job.state == "running":
            elapsed, mean = now - job.started, run.seconds_a_job(job.rule)
            if share := shares.get(number):
                left.append(elapsed * (1 - share) / share)
            elif mean is not None:
                left.append(max(0.0, mean - elapsed))
            else:
                unknown += 1
    total = sum(left)
    for rule in run.planned:
        mean = run.seconds_a_job(rule)
        waiting = run.waiting(rule)
        total += (mean or 0.0) * waiting
        unknown += waiting if mean is None else 0
    # As many at once as now, and not before the longest that runs.
    return max(total / max(1, run.count("running")), *left), unknown


def table(run: Run, folder: Path, now: float) -> str:
    """The page that is shown."""
    shares: dict[str, float] = {}
    running, failed = [], []
    for number, job in run.jobs.items():
        name = f"  {job.rule} {job.name}".rstrip()
        if job.state == "failed":
            failed.append(f"{name}: see {job.log}")
        elif job.state == "running":
            path = folder / job.log
            log = log_text(path) if path.is_file() else ""
            if seeds := seeds_of(job.name, log):
                done, num_seeds, shares[number] = seeds
                name += f": {done} of {num_seeds} seeds, {shares[number]:.0%},"
            running.append(f"{name} for {duration(now - job.started)}")
    lines = [headline(run, *time_left(run, shares, now)), "", *rows(run)]
    for title, entries in (("running", running), ("failed", failed)):
        lines += ["", title, *entries] if entries else []
    return "\n".join(lines)


def headline(run: Run, seconds: float, unknown: int) -> str:
    """Counts of all rules together, and the time that is left."""
    done, running, failed = map(run.count, ("done", "running", "failed"))
    text = f"{done} of {run.planned.total()} jobs done, {running} running, "
    text += f"{failed} failed"
    if run.ended:
        return text + "; Snakemake has ended"
    known = f"; about {duration(seconds)} left" if seconds or not unknown else ""
    more = " and" if known else ";"
    return (
        text + known + (f"{more} {unknown} jobs of unknown length" if unknown else "")
    )


def rows(run: Run) -> list[str]:
    """A line for each rule, in Snakemake's order."""
    head = ("rule", "done", "running", "failed", "waiting", "s a job")
    lines = ["{:22}{:>9}{:>9}{:>9}{:>9}{:>9}".format(*head)]
    for rule, planned in run.planned.items():
        mean = run.seconds_a_job(rule)
        cells = (
            f"{run.count('done', rule)}/{planned}",
            run.count("running", rule),
            run.count("failed", rule),
            run.waiting(rule),
            "" if mean is None else f"{mean:.1f}",
        )
        lines.append("{:22}{:>9}{:>9}{:>9}{:>9}{:>9}".format(rule, *cells).rstrip())
    return lines


def duration(seconds: float) -> str:
    """The two largest units, such as 2 h 1 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def log_text(path: Path) -> str:
    """Of a log, which may be cut in the middle of a character."""
    return path.read_text(encoding="utf-8", errors="replace")


def newest_log(folder: Path) -> str | None:
    """Text of the log of the last call; a cluster's jobs write logs of their own."""
    for path in sorted((folder / ".snakemake" / "log").glob("*.log"), reverse=True):
        text = log_text(path)
        command = re.search(r"^  Command: .*", text, re.M)
        if command and " --mode " not in command[0]:
            return text
    return None


def main() -> None:
    """Show the page once, or until Snakemake has ended or ^C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path(), help="of the run")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds")
    parser.add_argument("--once", action="store_true", help="show it once")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale
    once = options.once or not sys.stdout.isatty()
    while True:
        text = newest_log(options.directory)
        if text is None:
            sys.exit(f"{options.directory / '.snakemake/log'}: Snakemake left no log")
        run = read_log(text)
        page = table(run, options.directory, time.time())
        print(page if once else f"\x1b[H\x1b[2J{page}", flush=True)
        if once or run.ended:
            return
        time.sleep(options.interval)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
