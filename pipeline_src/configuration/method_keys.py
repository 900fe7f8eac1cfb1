"""What each policy of a method takes, and what it refuses.

The schema knows the keys of all policies together; here is which of them mean something
for one policy, and which values fit each other.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline_src.configuration.schemas import shown

# Keys of a method that say nothing under the other policies, which refuse them.
KEYS_OF_POLICY = {
    "full": (),
    "exact": (
        "bits",
        "layer_bits",
        "projection_ratio",
        "rows_per_block",
        "boundaries",
        "max_block_size",
    ),
    "lean": (
        "bits",
        "layer_bits",
        "projection_ratio",
        "rows_per_block",
        "boundaries",
        "without",
    ),
    "pyg": ("bits", "technique", "memory_budget"),
    "compress": ("bits",),
}
NOT_COMPRESSED = 32  # bits where the key says nothing
HOOK_BITS = (4, 8)
COMPRESS_BITS = (2, 4, 8, 32)
# Lean without one of these ideas keeps copies that can be projected.
COPYING = ("transposed_aggregation", "resident_input", "rebuilt_input")


def problems_of_methods(methods: Mapping[str, Any], schema: Any) -> Iterator[str]:
    """One line for each key of a method that its policy has no use for, or lacks."""
    keys = schema["$defs"]["method"]["properties"]
    neutral = {
        key: value["default"] for key, value in keys.items() if "default" in value
    }
    neutral["bits"] = NOT_COMPRESSED
    for name, method in methods.items():
        path, policy = f"methods.{name}", method["policy"]
        for key, value in neutral.items():
            if key not in KEYS_OF_POLICY[policy] and method.get(key, value) != value:
                yield (
                    f"{path}.{key}: means nothing with policy {policy}; "
                    f"got {shown(method[key])}, leave it out"
                )
        if policy == "exact":
            yield from _problems_of_exact(method, path)
        elif policy == "lean":
            yield from _problems_of_lean(method, path)
        elif policy == "pyg":
            yield from _problems_of_pyg(method, path)
        elif policy == "compress" and method.get("bits") not in COMPRESS_BITS:
            yield (
                f"{path}.bits: policy compress needs one of {COMPRESS_BITS}, got "
                f"{shown(method.get('bits'))}"
            )


def _problems_of_exact(method: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _problems_of_widths(method, path)
    bits = set(_widths(method))
    if method.get("boundaries") == "clipped_normal" and bits and bits <= {1, 32}:
        yield (
            f"{path}.boundaries: clipped_normal moves the inner bin edges, and "
            f"{' or '.join(map(str, sorted(bits)))} bits have none; take 2, 4 or 8 "
            "bits, or even"
        )


def _problems_of_widths(method: Mapping[str, Any], path: str) -> Iterator[str]:
    """One width for all, or one for each hidden layer."""
    if method.get("layer_bits") and method.get("bits", NOT_COMPRESSED) != 32:
        yield f"{path}.bits: layer_bits says the bits of each layer; leave one out"
    elif not _widths(method):
        yield (
            f"{path}.bits: is missing; policy {method['policy']} needs 1, 2, 4, 8 or 32"
        )


def _widths(method: Mapping[str, Any]) -> list[int]:
    """Bits that a method names, of all or of each hidden layer."""
    if method.get("layer_bits"):
        return list(method["layer_bits"])
    return [method["bits"]] if "bits" in method else []


def _problems_of_lean(method: Mapping[str, Any], path: str) -> Iterator[str]:
    rows = method.get("rows_per_block", 1)
    yield from _problems_of_widths(method, path)
    for bits in _widths(method):
        if bits < 8 and rows % (8 // bits):
            yield (
                f"{path}.rows_per_block: expected a multiple of {8 // bits}, because a "
                f"byte holds the {bits}-bit codes of as many rows; got {rows}"
            )
    is_sided = "sided_codes" not in method.get("without", ())
    if is_sided and method.get("boundaries", "even") != "even":
        yield (
            f"{path}.boundaries: the codes of lean have no fixed edges that could be "
            "moved, unless `without` names sided_codes; leave it out"
        )
    projected = method.get("projection_ratio", 1) != 1
    if projected and not set(method.get("without", ())) & set(COPYING):
        yield (
            f"{path}.projection_ratio: lean keeps nothing that could be projected "
            f"unless `without` names one of {', '.join(COPYING)}"
        )


def _problems_of_pyg(method: Mapping[str, Any], path: str) -> Iterator[str]:
    technique, bits = method.get("technique", "eager"), method.get("bits")
    if technique == "quantized_hooks":
        if bits not in HOOK_BITS:
            yield (
                f"{path}.bits: technique quantized_hooks needs one of {HOOK_BITS}, "
                f"got {shown(bits)}"
            )
    elif bits not in (None, NOT_COMPRESSED):
        yield (
            f"{path}.bits: belongs to technique quantized_hooks, not to {technique}; "
            "leave it out"
        )
    if technique != "budget" and method.get("memory_budget", 1) != 1:
        yield (
            f"{path}.memory_budget: belongs to technique budget, not to {technique}; "
            "leave it out"
        )
