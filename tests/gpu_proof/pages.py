"""What is made of the committed tables: two pages of the documentation, and estimates.

    python -m tests.gpu_proof.pages

writes docs/explanation/gpu_proof.md and roofline.md, and the estimates that `make gpu`
sets beside what it measures. A test compares them with the tables, so none can be left
behind.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.gpu_proof import table
from tests.gpu_proof.versions import PINS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "explanation"
COPY_EFFICIENCY = 0.9  # of a copy kernel, of the memory's peak
ISSUE_EFFICIENCY = 0.5  # integer pipes are half as wide as the schedulers' issue
LANES = 128  # threads that the four schedulers of a multiprocessor serve a cycle


@dataclass(frozen=True)
class Device:
    """What the estimate takes of a data sheet."""

    name: str
    bandwidth: float  # bytes a second, peak
    multiprocessors: int
    clock: float  # cycles a second, boost

    @property
    def copied(self) -> float:
        """Bytes a second that a copy kernel is assumed to move."""
        return COPY_EFFICIENCY * self.bandwidth

    @property
    def issued(self) -> float:
        """Instructions a second, counted for each thread, assumed to be reached."""
        return ISSUE_EFFICIENCY * self.multiprocessors * LANES * self.clock


DEVICES = {
    "sm_80": Device("A100 SXM 80 GB", 2.039e12, 108, 1.41e9),
    "sm_90": Device("H100 SXM", 3.35e12, 132, 1.98e9),
}


def share_of_copy(row: dict[str, str]) -> float:
    """Estimated speed of a kernel, over that of a copy of what it must move."""
    device = DEVICES[row["device"]]
    moved = float(row["bytes_per_value"])
    needed = moved / float(row["bytes_ratio"])
    time = max(
        moved / device.copied, float(row["instructions_per_value"]) / device.issued
    )
    return needed / device.copied / time


def estimates(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """A row for each case on each of DEVICES."""
    return [
        {
            **{"case": row["case"], "device": row["device"]},
            "estimated_share": f"{share_of_copy(row):.2f}",
        }
        for row in rows
        if row["device"] in DEVICES
    ]


def roofline(rows: list[dict[str, str]]) -> str:
    """The page of estimates."""
    by_key = {(row["case"], row["device"]): row for row in rows}
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        on = [by_key[case, device] for device in DEVICES]
        cells = [
            case,
            on[1]["bytes_per_value"],
            *(row["instructions_per_value"] for row in on),
            *(f"{share_of_copy(row):.0%}" for row in on),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    assumed = "\n".join(
        f"- {one.name} ({key}): memory {one.bandwidth / 1e12:.2f} TB/s, "
        f"{one.multiprocessors} multiprocessors at {one.clock / 1e9:.2f} GHz; so "
        f"{one.copied / 1e12:.2f} TB/s and {one.issued / 1e12:.1f} x 10^12 "
        "instructions of a thread each second are assumed to be reached."
        for key, one in DEVICES.items()
    )
    names = " | ".join(one.name for one in DEVICES.values())
    return _ROOFLINE.format(
        rows="\n".join(lines),
        assumed=assumed,
        names=names,
        copy=f"{COPY_EFFICIENCY:.0%}",
        issue=f"{ISSUE_EFFICIENCY:.0%}",
        lanes=LANES,
    )


def _changes(rows: list[dict[str, str]], before: list[dict[str, str]]) -> list[str]:
    """A line for each case that was counted before: then -> now."""
    now = {row["case"]: row for row in rows if row["device"] == "sm_90"}
    lines = []
    for old in before:
        new = now[old["case"]]
        cells = [old["case"]]
        cells += [
            f"{old[name]} -> {new[name]}" for name in list(old)[1:] if name in new
        ]
        cells.append(f"{old['vector_loads']} -> {new['load_bytes']}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def proof(
    rows: list[dict[str, str]],
    steps: list[dict[str, str]],
    before: list[dict[str, str]],
) -> str:
    """The page of what is proven."""
    kernels = []
    for kernel in sorted({row["kernel"] for row in rows}):
        of_kernel = [row for row in rows if row["kernel"] == kernel]
        cases = {row["case"] for row in of_kernel}
        cells = [kernel, str(len(cases))]
        for column in ("launches", "registers", "load_bytes", "bytes_ratio"):
            figures = sorted({float(row[column]) for row in of_kernel})
            low, high = f"{figures[0]:g}", f"{figures[-1]:g}"
            cells.append(low if low == high else f"{low} to {high}")
        kernels.append(f"| {' | '.join(cells)} |")
    lines = [f"| {' | '.join(row.values())} |" for row in steps]
    return _PROOF.format(
        torch=PINS["torch"],
        triton=PINS["triton"],
        kernels="\n".join(kernels),
        steps="\n".join(lines),
        before="\n".join(_changes(rows, before)),
    )


_ROOFLINE = """\
# How fast kernels should be on a GPU: an estimate

**Nothing on this page was measured on a GPU.** It is arithmetic on figures that were
counted in machine code (`results/published/gpu_proof.csv`), and it serves to rank
kernels, not to be quoted. `python -m tests.gpu_proof.pages` writes it.

A kernel takes as long as the slower of two things: moving its bytes, and issuing its
instructions. The last two columns give what a copy of the same necessary bytes would
take, over that time.

Assumptions, none of them measured here:

{assumed}
- A copy reaches {copy} of the memory's peak. A kernel issues {issue} of what {lanes}
  lanes of a multiprocessor could, because integer pipes are half as wide.
- The figures of the two devices are NVIDIA's public ones, from memory.

Instructions are an upper bound: all paths of a kernel are counted, those that are
seldom taken too, and a loop's body counts whole in each round. So shares lean low. A
value is an element of the largest tensor that a kernel reads or writes, all its parts
together where it is given in parts.

| case | bytes per value | instructions, sm_80 | instructions, sm_90 | {names} |
|---|---|---|---|---|---|
{rows}
"""

_PROOF = """\
# What is proven of the GPU's kernels without a GPU

`make gpu-proof` runs on any machine. With torch {torch} and Triton {triton} it does to
every kernel that the library compiles, at every width, with blocks that fill words and
blocks that do not, with even and uneven bins, what a GPU's first call would do:

1. Inductor writes the Triton module for fake CUDA tensors, called through the
   library's own operations and its own `fuse`, as for an H100.
2. Triton compiles each kernel to machine code for sm_80, sm_90 and, for no other
   purpose than to know that it compiles, AMD's gfx942; for sm_90 in every configuration
   that Inductor would time there.
3. Triton's interpreter runs the whole module on the CPU, at odd sizes, and the result
   is compared with the plain function: to the bit, sums too, because kernels add rows
   in the plain function's order.
4. Figures of the machine code are compared with the committed table. A worse one
   fails, a better one asks to be committed: `python -m tests.gpu_proof.prove
   --publish`.

`.ci/run` proves, whole, what has changed since the table was published, and the steps:
beside the table stands a digest for each case, of all that decides about it
(`make gpu-proof-changed`). What has not changed it takes from the table.

Laws that no table excuses: it compiles on all three; one launch (`active_sums` two,
and three where compressed blocks share words, as blocks of 63 values do below 8 bits:
two join the zero points and the scales of a packet); one module for any number of rows;
no operation outside the kernels; no spilled register on sm_80 and sm_90 (on gfx942,
which the module is not written for, spills are recorded and may not grow); no float64
instruction; bytes moved at most 1.1 times what must be read and written once (1.3
where a layer's codes are made). Faults are planted to see the proof
fail: a constant beyond int32, a float64 constant, a lost mask, an extra copy.

A training step is traced as a whole on tensors without data: the trainer's own step,
with autograd's engine and the optimiser. Reading a value, a shape that depends on
data, a copy between host and device, or an operation on two devices fails.

## What is not proven

- **Speed.** Nothing was timed. `roofline.md` estimates.
- **Which configuration autotuning picks.** A device times several of a kernel, those
  that spill registers left out by an option of the library's. Figures are those of the
  one, of these, that takes the fewest instructions on sm_90; the table says which one
  that is. A device may prefer one with fewer registers.
- **cuSPARSE**, which multiplies by the adjacency matrix: what it does with an output
  that is not initialised, and whether it repeats to the bit.
- **The exact bits of a GPU.** The interpreter rounds each operation as IEEE 754 says.
  What the machine code contracts or approximates is decided by the compiler's
  switches.
- **Index arithmetic beyond sizes that were tried**, occupancy, caches, cost of a
  launch.
- **The step on CUDA tensors**: autograd's engine wants a device, so meta tensors
  stand for them. Kernels within are counted with as many launches as the laws allow.
- **AMD**: the module is the one written for NVIDIA; nothing ran.

## Kernels

Every row of the table is in `results/published/gpu_proof.csv`: a case on an
architecture. In short, over cases and architectures:

| kernel | cases | launches | registers | bytes per load | bytes moved / needed |
|---|---|---|---|---|---|
{kernels}

## Before

What kernels were when they had been written for a CPU alone, under
`torch.compile(dynamic=True)`, beside what they are now; both on sm_90, with torch 2.13.
The figures of now are those of the configuration with the fewest instructions; those
of before of the first one, but for the instructions of `compress` and `gradient_sums`,
where all were tried. They are not made by this proof: they were
counted once, by hand-run scripts with the same compilers, and are kept in
`results/published/gpu_proof_before.csv`; an empty cell was not counted. Four of these
kernels did not compile then and had been mended by hand to be counted (compress at 1
bit, at 2 bits with blocks of 64 and of 2048) or could not be (8 bits, uneven). The
codes of `rectify` and its readers have since become others, so theirs is a comparison
of what takes their place.

| case | modules | launches | registers | spills | float64 | bytes moved / needed | \
instructions per value | bytes per load |
|---|---|---|---|---|---|---|---|---|
{before}

## Steps

Three layers of 128 on a graph of ogbn-arxiv's size; launches of one training step
beside matrix products and the loss, and how many of these are the library's kernels.

| policy | layer | BatchNorm | launches | of kernels | products | loss |
|---|---|---|---|---|---|---|
{steps}
"""


def pages() -> dict[Path, str]:
    """What both pages say of the committed tables."""
    rows, steps = table.KERNELS.read(), table.STEPS.read()
    before = table.BEFORE.read()
    return {
        FOLDER / "gpu_proof.md": proof(rows, steps, before),
        FOLDER / "roofline.md": roofline(rows),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    table.ESTIMATES.write(estimates(table.KERNELS.read()))
    print(f"wrote {table.ESTIMATES.path}")
