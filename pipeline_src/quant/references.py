"""Tensors that an operation keeps by reference for backward, watched for changes.

Autograd counts how often a tensor was changed in place, and refuses a backward pass
that would read another value than forward did. It looks at what was handed to
`save_for_backward` and at nothing else. What is kept in another way, on a context or
inside a description, is watched here by the same counter. Without that, two losses
with a step of the optimiser between them give gradients of no function at all, and
nothing says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """A tensor, and how often it had been changed when it was kept."""

    name: str
    tensor: Tensor
    version: int


def watch(tensors: Iterable[tuple[str, Tensor | None]]) -> tuple[Reference, ...]:
    """Remember the state of tensors by their names; None is left out.

    Raises:
        RuntimeError: if a tensor counts no changes, as those of inference mode.
    """
    found = []
    for name, tensor in tensors:
        if tensor is None:
            continue
        if tensor.is_inference():
            raise RuntimeError(
                f"{name} was made under torch.inference_mode() and cannot be kept for "
                f"backward, because its changes are not counted; pass {name}.clone(), "
                "made outside that mode"
            )
        found.append(Reference(name, tensor, tensor._version))
    return tuple(found)


def check_unchanged(references: Iterable[Reference]) -> None:
    """Refuse to go on where a tensor is not what it was.

    Raises:
        RuntimeError: naming the tensor, and the way out.
    """
    for one in references:
        if one.tensor._version != one.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been "
                f"modified by an inplace operation: {one.name}, shaped "
                f"{tuple(one.tensor.shape)}, is at version {one.tensor._version}, "
                f"expected version {one.version}. Run backward before the step that "
                "changes it (add up the losses of several), or run forward again"
            )
