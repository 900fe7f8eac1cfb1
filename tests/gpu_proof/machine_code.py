"""What the compilers of three devices make of a kernel.

NVIDIA's code is read as SASS, the instructions themselves, with the tools in Triton's
own wheel; AMD's as the assembly that its compiler wrote. Inductor times several
configurations of a kernel on the device, but none that spills more registers than the
library's options allow. Figures are those of the one, of these, that takes the fewest
instructions on the device that the module was written for.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ARCHITECTURES = ("sm_80", "sm_90", "gfx942")
RANKED_ON = "sm_90"

_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", re.M)
_SASS_ACCESS = re.compile(r"^(LDG|STG)\b.*?(?:\.(U8|S8|U16|S16|64|128))?$")
_SASS_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "": 4, "64": 8, "128": 16}
_AMD = re.compile(r"[vs]_|global_|flat_|buffer_|scratch_|ds_")
_AMD_ACCESS = re.compile(r"^(?:global|buffer|flat)_(load|store)_(\w+)")
_AMD_BYTES = {
    **{"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2},
    **{"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16},
}


def figures(name: str, text: str) -> dict[str, dict[str, Any]]:
    """By device: registers, spills and instructions, or why there are none.

    `loads` and `stores` count instructions by the bytes that one moves for a thread.
    """
    from tests.gpu_proof.pretended_cuda import count_configurations, most_spills

    allowed = most_spills(name, text)
    order = range(count_configurations(name, text))
    found: dict[str, dict[str, Any]] = {}
    for device in (RANKED_ON, *ARCHITECTURES):
        if device in found:
            continue
        tried = (_figures(name, text, device, one) for one in order)
        try:
            if device == RANKED_ON:
                tried = sorted(tried, key=_cost)
                order = [one["configuration"] - 1 for one in tried]
            found[device] = first_timed(tried, allowed)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            found[device] = {"fault": message.strip()[-500:]}
    return found


def r0_numel(text: str) -> int:
    """Elements that a kernel reduces to one; 1 if it reduces nothing."""
    found = re.search(r"^    r0_numel = (\d+)$", text, re.M)
    return int(found[1]) if found else 1


def _cost(one: dict[str, Any]) -> float:
    """Instructions of all threads for an element of the grid, in a large one."""
    elements = math.prod(one.get(f"{axis}BLOCK", 1) for axis in "XYZ")
    rounds = -(-one["r0_numel"] // one["R0_BLOCK"]) if "R0_BLOCK" in one else 1
    return one["instructions"] * one["threads"] * rounds / elements


def first_timed(tried: Iterable[dict[str, Any]], allowed: int) -> dict[str, Any]:
    """The first that spills no more than is allowed; the very first if all do."""
    first: dict[str, Any] = {}
    for found in tried:
        if found["spills"] + found["local"] <= allowed:
            return found
        first = first or found
    return first


def _figures(
    name: str, text: str, architecture: str, configuration: int
) -> dict[str, Any]:
    from tests.gpu_proof.pretended_cuda import compile_kernel

    compiled, config = compile_kernel(name, text, architecture, configuration)
    if architecture.startswith("sm_"):
        found = _of_nvidia(compiled)
    else:
        found = _of_amd(compiled.asm["amdgcn"])
    blocks = {key: value for key, value in config.items() if key.endswith("BLOCK")}
    threads = config["num_warps"] * (32 if architecture.startswith("sm_") else 64)
    return {
        **{**found, "shared": compiled.metadata.shared, "threads": threads},
        **{"configuration": configuration + 1, "r0_numel": r0_numel(text), **blocks},
    }


def _of_nvidia(compiled: Any) -> dict[str, Any]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tool, "-res-usage", file.name)
        code = _output(tool, "-sass", file.name)
    used = {key: int(n) for key, n in re.findall(r"\b(REG|LOCAL):(\d+)", usage)}
    found = of_sass(code)
    found["unlike_eager"] = unlike_eager(compiled.asm["ptx"])
    return {**found, "registers": used["REG"], "local": used["LOCAL"]}


def _output(*command: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def of_sass(code: str) -> dict[str, Any]:
    """Counts of instructions in a listing of cuobjdump."""
    operations = [one for one in _SASS.findall(code) if one != "NOP"]
    accesses: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter()}
    for one in operations:
        if access := _SASS_ACCESS.match(one):
            accesses[access[1]][str(_SASS_BYTES[access[2] or ""])] += 1
    families = [one.split(".")[0] for one in operations]
    return {
        "instructions": len(operations),
        "float64": sum(
            family in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX") or "F64" in one
            for family, one in zip(families, operations, strict=True)
        ),
        "spills": sum(family in ("LDL", "STL") for family in families),
        "loads": dict(accesses["LDG"]),
        "stores": dict(accesses["STG"]),
    }


def unlike_eager(code: str) -> int:
    """Instructions of PTX that round otherwise than PyTorch's operations, one by one.

    Machine code does not tell: an exact division is made of multiply-adds there.
    """
    return len(re.findall(r"\b(?:fma\.rn|div\.full|\w+\.approx)\.", code))


def _of_amd(code: str) -> dict[str, Any]:
    lines = [re.split("//|;", line)[0].split() for line in code.splitlines()]
    operations = [words[0] for words in lines if words and _AMD.match(words[0])]
    accesses: dict[str, Counter[str]] = {"load": Counter(), "store": Counter()}
    for one in operations:
        if access := _AMD_ACCESS.match(one):
            size = access[2].removesuffix("_d16_hi").removesuffix("_d16")
            accesses[access[1]][str(_AMD_BYTES[size])] += 1
    numbers = dict(re.findall(r"\.(\w+_count):\s+(\d+)", code))
    spilled = int(numbers["vgpr_spill_count"]) + int(numbers["sgpr_spill_count"])
    return {
        "registers": int(numbers["vgpr_count"]),
        "local": 0,
        "instructions": len(operations),
        "float64": sum("_f64" in one for one in operations),
        "spills": spilled,
        "loads": dict(accesses["load"]),
        "stores": dict(accesses["store"]),
    }


def main() -> None:
    """Read a kernel a line, as JSON; write its figures on each device, as JSON."""
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(figures(asked["name"], asked["text"])), flush=True)


if __name__ == "__main__":
    main()
