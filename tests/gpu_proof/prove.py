"""Run the proof, or read what has been proven before.

    python -m tests.gpu_proof.prove              prove, and compare with the table
    python -m tests.gpu_proof.prove --publish    prove, and write the table
    python -m tests.gpu_proof.prove --changed    prove what the table was not made with

Two processes at most work at a time: first on modules and the interpreter, then on
machine code. What they find is kept in .cache/gpu_proof by its content: a case by the
library's files behind its kernel, the proof's own files and the versions; a kernel's
machine code by the kernel's text. What has not changed costs nothing. Beside the table
stand the digests that its cases had, by which a fresh clone knows what has changed.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pipeline_src.records.sources import imported_sources
from tests.gpu_proof import steps, table
from tests.gpu_proof.cases import Case, all_cases
from tests.gpu_proof.recording import kernels
from tests.gpu_proof.versions import PINS, obstacle

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "gpu_proof"
PROCESSES = 2
# What decides about a case, and about a kernel's machine code.
_GENERATING = (
    *("pretended_cuda.py", "recording.py", "cases.py", "planted.py", "generation.py"),
)
_COMPILING = ("pretended_cuda.py", "machine_code.py")


def proven(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What is known of each case: as in generation.py, and `machine_code`."""
    found = _through_cache(
        {case.name: case.name for case in cases},
        {case.name: f"cases/{_slug(case.name)}" for case in cases},
        {case.name: _digest(_library_of(case.kernel), _GENERATING) for case in cases},
        "generation",
    )
    texts = {
        text: json.dumps({"name": name, "text": text})
        for one in found.values()
        for name, text in one["kernels"].items()
    }
    keys = {text: _digest([text.encode()], _COMPILING) for text in texts}
    places = {text: f"kernels/{key}" for text, key in keys.items()}
    codes = _through_cache(texts, places, keys, "machine_code")
    for one in found.values():
        one["machine_code"] = {
            name: codes[text] for name, text in one["kernels"].items()
        }
    return list(found.values())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_+]+", "-", name)


def _library_of(kernel: str) -> list[bytes]:
    """The library's files that decide about a kernel: its own, and what it imports."""
    file = Path(kernels()[kernel].module.__file__)
    files = {file, *imported_sources(file, ROOT)}
    return [path.read_bytes() for path in sorted(files)]


def digests(cases: Iterable[Case]) -> list[dict[str, str]]:
    """One row for each case: what it depends on, in the library and in the proof."""
    proof = sorted({*_GENERATING, *_COMPILING})
    return [
        {"case": one.name, "digest": _digest(_library_of(one.kernel), proof)[:16]}
        for one in cases
    ]


def changed(cases: list[Case]) -> list[Case]:
    """Those that the committed table was not made with."""
    committed = table.DIGESTS.read()
    return [
        case
        for case, row in zip(cases, digests(cases), strict=True)
        if row not in committed
    ]


def _digest(contents: Iterable[bytes], proof: Iterable[str]) -> str:
    folder = Path(__file__).parent
    own = [(folder / name).read_bytes() for name in proof]
    found = hashlib.sha256(json.dumps(PINS).encode())
    for content in (*contents, *own):
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def _through_cache(
    asked: dict[str, str], places: dict[str, str], keys: dict[str, str], module: str
) -> dict[str, Any]:
    """Answers of a worker's module, by what was asked; only new ones are computed."""
    answers: dict[str, Any] = {}
    for one, place in places.items():
        file = CACHE / f"{place}.json"
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["key"] == keys[one]:
                answers[one] = kept["answer"]
    missing = {one: line for one, line in asked.items() if one not in answers}
    for done, (one, answer) in enumerate(_answers(module, missing), start=1):
        answers[one] = answer
        print(f"{module} {done} of {len(missing)}", file=sys.stderr, flush=True)
        if _is_faulty(answer):  # looked at again: the cause may lie elsewhere
            continue
        file = CACHE / f"{places[one]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        text = json.dumps({"key": keys[one], "answer": answer})
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    return {one: answers[one] for one in asked}


def _is_faulty(answer: dict[str, Any]) -> bool:
    """Whether a case has faults, or a kernel does not compile somewhere."""
    codes = [one for one in answer.values() if isinstance(one, dict)]
    return bool(answer.get("faults")) or any("fault" in one for one in codes)


def _answers(module: str, asked: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Ask lines of worker processes, each of which takes the next one when free."""
    queue: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    for one in asked:
        queue.put(one)

    def work() -> None:
        with _worker(module) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            while True:
                try:
                    one = queue.get_nowait()
                except Empty:
                    break
                print(asked[one], file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the process of {module} ended at {one[:200]}")
                done.put((one, json.loads(line)))
            process.stdin.close()

    count = min(PROCESSES, len(asked))
    with ThreadPoolExecutor(max(count, 1)) as pool:
        futures = [pool.submit(work) for _ in range(count)]
        for _ in asked:
            while True:
                try:
                    yield done.get(timeout=1.0)
                    break
                except Empty:
                    for future in futures:
                        if future.done():
                            future.result()  # raises what ended it
        for future in as_completed(futures):
            future.result()


def _worker(module: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1" if module == "generation" else "0",
        "TRITON_CACHE_DIR": str(CACHE / "triton"),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.gpu_proof.{module}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def main() -> None:
    """Prove all cases, or those whose name holds one of the words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="cases whose name holds one of them")
    parser.add_argument("--publish", action="store_true", help="write the table")
    parser.add_argument("--changed", action="store_true", help="only what has changed")
    arguments = parser.parse_args()
    if reason := obstacle():
        sys.exit(reason)
    cases = [
        case
        for name, case in all_cases().items()
        if not arguments.words or any(word in name for word in arguments.words)
    ]
    if arguments.changed:
        cases = changed(cases)
        print(f"{len(cases)} cases have changed since the table was written")
    found = proven(cases)
    broken = [line for one in found for line in table.broken_laws(one)]
    print(*broken, sep="\n")
    parts = [(table.KERNELS, table.rows_of(found))]
    if not arguments.words:
        parts.append((table.STEPS, steps.rows()))
    differences = [
        line for one, rows in parts for line in one.differences(one.read(), rows)
    ]
    print(*differences, sep="\n")
    is_whole = not (arguments.words or arguments.changed)
    if arguments.publish and is_whole and not broken:
        for one, rows in (*parts, (table.DIGESTS, digests(cases))):
            one.write(rows)
            print(f"wrote {one.path.relative_to(ROOT)}")
        return
    sys.exit(1 if broken or differences else 0)


if __name__ == "__main__":
    main()
