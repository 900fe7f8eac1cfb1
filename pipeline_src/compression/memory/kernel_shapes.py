"""What compiled kernels return, for tensors that have a shape and no values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_any, tree_leaves, tree_map


class KernelShapes:
    """Runs plain kernels once for each shape of their arguments.

    A large activation is coded in hundreds of runs of one shape, each dozens of
    operations; fake ones are all alike.
    """

    def __init__(self) -> None:
        """No shape is known yet."""
        self._known: dict[Any, Any] = {}

    def results(self, plain: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What the kernel returns; for fakes, something of the same shapes."""
        if not tree_any(lambda one: isinstance(one, FakeTensor), arguments):
            return plain(*arguments)
        tensors = [one for one in tree_leaves(arguments) if isinstance(one, Tensor)]
        key = (plain, str(tree_map(_shape, arguments)))
        if key not in self._known:
            owners = {
                one.untyped_storage()._cdata: index for index, one in enumerate(tensors)
            }
            found = plain(*arguments)
            self._known[key] = tree_map(lambda one: _recipe(one, owners), found)
        return tree_map(lambda recipe: recipe(tensors), self._known[key])


def _shape(one: Any) -> Any:
    if isinstance(one, Tensor):
        return (tuple(one.shape), one.stride(), one.dtype)
    return one


def _recipe(one: Any, owners: dict[int, int]) -> Callable[[list[Tensor]], Any]:
    """How to make another result like this one."""
    if not isinstance(one, Tensor):
        return lambda tensors: one
    owner = owners.get(one.untyped_storage()._cdata)
    geometry = (tuple(one.shape), one.stride())
    if owner is not None:
        offset = int(one.storage_offset())
        return lambda tensors: tensors[owner].as_strided(*geometry, offset)
    dtype, device = one.dtype, one.device
    return lambda tensors: torch.empty_strided(*geometry, dtype=dtype, device=device)
