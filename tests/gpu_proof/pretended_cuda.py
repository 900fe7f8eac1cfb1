"""Inductor and Triton for a CUDA device that is not there; all private names live here.

Inductor needs a device only to ask for its properties, and to run what it wrote. So
properties are pretended, arguments are fake CUDA tensors, and the finished module is
kept as text instead of being loaded. From there

* `Modules` says which module a call would run, and with which inputs;
* `interpreted` runs a whole module (sizes, strides, every launch) on CPU tensors in
  Triton's interpreter, where the process was started with TRITON_INTERPRET=1;
* `kernels_of` and `compile_kernel` take its kernels to machine code, where it was not.

Everything here depends on internals of one version of torch and of Triton, so
`obstacle` names any others as a reason to skip. It was written for a CPU build of
torch, and a CUDA build works alike.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch._dynamo
import torch.utils._foreach_utils
import torch.utils._triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config as inductor_config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# c10::DeviceType
_CUDA, _META = 1, 14
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"

# What Inductor asks of a device, from NVIDIA's data sheets of H100 SXM and A100.
_COMMON = {
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "regs_per_multiprocessor": 65536,
    "warp_size": 32,
    "total_memory": 80 * 2**30,
    "shared_memory_per_block": 49152,
    "gcnArchName": "",
}
PROPERTIES = {
    "sm_90": SimpleNamespace(
        name="H100",
        major=9,
        minor=0,
        multi_processor_count=132,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        L2_cache_size=50 * 2**20,
        **_COMMON,
    ),
    "sm_80": SimpleNamespace(
        name="A100",
        major=8,
        minor=0,
        multi_processor_count=108,
        shared_memory_per_block_optin=166912,
        shared_memory_per_multiprocessor=167936,
        L2_cache_size=40 * 2**20,
        **_COMMON,
    ),
}
_EAGER_SETTINGS = {
    "force_disable_caches": True,
    "compile_threads": 1,
    # It would evaluate constants on the device.
    "joint_graph_constant_folding": False,
}


class _NotLoadedError(Exception):
    """A module was about to run on the device."""


@contextmanager
def pretended_device(architecture: str) -> Iterator[None]:
    """Let Dynamo and Inductor see a CUDA device of this architecture."""
    properties = PROPERTIES[architecture]
    capability = (properties.major, properties.minor)
    constants: list[tuple[Any, str, Any]] = [
        (CudaInterface, "device_count", 1),
        (CudaInterface, "is_available", True),
        (CudaInterface, "get_compute_capability", capability[0] * 10 + capability[1]),
        (CudaInterface, "is_triton_capable", True),
        (CudaInterface, "raise_if_triton_unavailable", None),
        (CudaInterface, "is_bf16_supported", True),
    ]
    for interface in (CudaInterface, CudaInterface.Worker):
        constants.append((interface, "get_device_properties", properties))
        constants.append((interface, "current_device", 0))
    for name, value in {
        "get_device_properties": properties,
        "get_device_capability": capability,
        "current_device": 0,
        "device_count": 1,
        "is_bf16_supported": True,
    }.items():
        constants.append((torch.cuda, name, value))
    constants.append((torch.utils._triton, "triton_hash_with_backend", "pretended"))
    _lend_device_guard()
    with ExitStack() as stack:
        for owner, name, value in constants:
            found = functools.partial(_constant, value)
            given = staticmethod(found) if isinstance(owner, type) else found
            stack.enter_context(mock.patch.object(owner, name, given))
        version = torch.version.cuda or "13.0"
        stack.enter_context(mock.patch.object(torch.version, "cuda", version))
        stack.callback(_forget_properties)
        _forget_properties()
        yield


def _constant(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _forget_properties() -> None:
    torch.utils._triton.has_triton.cache_clear()
    DeviceProperties.create.cache_clear()


def _lend_device_guard() -> None:
    """Give CUDA meta's guard, which does nothing, in a build that has none.

    Without one, `x[0]` of a fake CUDA tensor says that torch is not linked with CUDA.
    """
    if torch.backends.cuda.is_built():
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, _GUARDS)
    guards[_CUDA] = guards[_CUDA] or guards[_META]


def fake_mode() -> FakeTensorMode:
    """Tensors made below it have shapes and devices, and no data."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


class Module(NamedTuple):
    """One call of a compiled function: the module it runs, and with what."""

    index: int  # in Modules.sources
    inputs: list[Any]  # sizes, and leaves of the arguments


class Modules:
    """The modules that torch.compile writes for the calls it is asked."""

    def __init__(self, fused: Callable[..., Any], architecture: str) -> None:
        """Start with none: what was compiled before is forgotten."""
        self.fused = fused
        self.architecture = architecture
        self.sources: list[str] = []
        self._asked: Module | None = None
        torch._dynamo.reset()

    def ask(self, arguments: tuple[Any, ...]) -> Module:
        """The module that runs for fake arguments, written now if there is none."""
        self._asked = None
        with (
            _disable_current_modes(),
            pretended_device(self.architecture),
            mock.patch.object(
                GraphLowering, "_compile_to_module_lines", self._keep_source
            ),
            inductor_config.patch(**_EAGER_SETTINGS),
            fake_mode_of(arguments),
            suppress(_NotLoadedError),
        ):
            self.fused(*arguments)
        assert self._asked is not None, "nothing was compiled"
        return self._asked

    def _keep_source(self, code: Any) -> SimpleNamespace:
        index = len(self.sources)
        self.sources.append(code.value)

        def call(inputs: list[Any]) -> None:
            self._asked = Module(index, list(inputs))
            raise _NotLoadedError

        return SimpleNamespace(__file__="<pretended>", call=call)


def fake_mode_of(arguments: Any) -> FakeTensorMode:
    """The mode that made some fake arguments."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, FakeTensor):
            return leaf.fake_mode
    raise ValueError("no argument is a fake tensor")


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of nested arguments or results, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def clones_of(tree: Any) -> Any:
    """The same tree around copies of its tensors, strides kept."""

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copy = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)
        # An expanded dimension has one element, which is not written twice.
        once = tuple(slice(None if step else 1) for step in leaf.stride())
        copy[once].copy_(leaf[once])
        return copy

    return pytree.tree_map(clone, tree)


def real_inputs(module: Module, fake: Any, real: Any) -> list[Any]:
    """The inputs of a module with real tensors in place of the fake ones.

    Raises:
        ValueError: if an input is no argument, as a Python float becomes.
    """
    pairs = list(zip(tensors_of(fake), tensors_of(real), strict=True))
    inputs = []
    for given in module.inputs:
        if not isinstance(given, Tensor):
            inputs.append(given)
            continue
        same = [one for other, one in pairs if other is given]
        same = same or [one for other, one in pairs if _place(other) == _place(given)]
        if not same:
            raise ValueError(f"a module's input is no argument of the call: {given}")
        inputs.append(same[0])
    return inputs


def _place(x: Tensor) -> tuple[Any, ...]:
    storage = x.untyped_storage()._cdata
    return storage, x.shape, x.stride(), x.storage_offset()


# --- running a module on the CPU ------------------------------------------------------

_ON_CPU = [
    (
        r"from torch\._C import _cuda_getCurrentRawStream as get_raw_stream",
        "get_raw_stream = lambda index: None",
    ),
    (r"guards\._empty_strided_cuda", "guards._empty_strided_cpu"),
    (r"with torch\.cuda\._DeviceGuard\(0\):", "if True:"),
    (r"torch\.cuda\.set_device\(0\)", "pass"),
    (r"device=device\(type='cuda', index=0\)", "device='cpu'"),
]


def interpreted(source: str, inputs: list[Any]) -> list[Any]:
    """What a module returns for CPU tensors, by Triton's interpreter."""
    for pattern, replacement in _ON_CPU:
        source = re.sub(pattern, replacement, source)
    _complete_interpreter()
    return list(_loaded(source).call(list(inputs)))


@functools.cache
def _loaded(source: str) -> Any:
    triton_helpers.set_driver_to_gpu = lambda: None
    return PyCodeCache.load(source)


@functools.cache
def _complete_interpreter() -> None:
    """Lend Triton's interpreter the functions of libdevice that kernels use."""
    tl = importlib.import_module("triton.language")
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def lift(function: Callable[..., Any], dtype: Any = None) -> Any:
        def call(*arguments: Any) -> Any:
            data = np.asarray(function(*[x.handle.data for x in arguments]))
            kind = dtype or arguments[0].dtype
            if dtype is not None:
                data = data.astype(np.int32)
            handle = interpreter.TensorHandle(data, kind)
            of = arguments[0].type
            shape = tl.block_type(kind, list(of.shape)) if of.is_block() else kind
            return tl.core.tensor(handle, shape)

        return staticmethod(call)

    functions = {
        "nearbyint": lift(np.rint),
        "rint": lift(np.rint),
        "pow": lift(np.power),
        "floor": lift(np.floor),
        "trunc": lift(np.trunc),
        "signbit": lift(np.signbit, tl.int32),
        "isinf": lift(np.isinf, tl.int32),
        "isnan": lift(np.isnan, tl.int32),
        "finitef": lift(np.isfinite, tl.int32),
    }
    triton_helpers.libdevice = type("libdevice", (), functions)


# --- taking kernels to machine code ---------------------------------------------------

_KERNEL = re.compile(
    r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.S
)
_EXTERN = re.compile(r"(extern_kernels\.\w+|torch\.ops\.[\w.]+|aten\.[\w.]+)\(")


class Launch(NamedTuple):
    """One start of a Triton kernel: what it is given, by name of its parameter."""

    kernel: str
    arguments: dict[str, Any]


class Plan(NamedTuple):
    """What a module does when it is called: on meta tensors, so with sizes alone."""

    kernels: dict[str, str]  # text by name
    launches: list[Launch]
    extern_calls: list[str]  # operations that are not in any of its kernels
    inputs: list[Any]
    outputs: list[Any]


def plan_of(source: str, inputs: list[Any]) -> Plan:
    """Run the wrapper of a module without data and note each launch."""
    kernels = dict(_KERNEL.findall(source))
    launches: list[Launch] = []

    def stand_in(name: str) -> SimpleNamespace:
        signature = re.search(rf"def {name}\((.*?)\):", kernels[name])
        assert signature is not None, name
        names = [one.partition(":")[0].strip() for one in signature[1].split(",")]

        def run(*arguments: Any, **_: Any) -> None:
            launches.append(Launch(name, dict(zip(names, arguments, strict=False))))

        return SimpleNamespace(run=run)

    source = _KERNEL.sub(r"_stand_in('\1')", source)
    for pattern, replacement in _ON_CPU:
        source = re.sub(pattern, replacement, source)
    source = source.replace("async_compile.wait(globals())", "")
    source = re.sub(r"= copy_if_misaligned\((\w+)\)", r"= \1", source)
    body = source.partition("def call(")[2].partition("\nrunner = ")[0]
    space: dict[str, Any] = {"_stand_in": stand_in, "__name__": "plan"}
    exec(compile(source, "<plan>", "exec"), space)
    space["empty_strided_cuda"] = _empty_meta
    given = [_on_meta(one) for one in inputs]
    outputs = space["call"](list(given))
    return Plan(kernels, launches, _EXTERN.findall(body), given, list(outputs))


def _empty_meta(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _on_meta(given: Any) -> Any:
    """A tensor of the same shape without data; numbers stay."""
    if not isinstance(given, Tensor):
        return given
    return _empty_meta(tuple(given.shape), given.stride(), given.dtype)


def count_configurations(name: str, text: str) -> int:
    """How many of a kernel a device would be asked to time."""
    return len(getattr(_loaded(text), name).configs)


def most_spills(name: str, text: str) -> int:
    """Spills beyond which a device is not asked to time a configuration."""
    return getattr(_loaded(text), name).inductor_meta["spill_threshold"]


def compile_kernel(
    name: str, text: str, architecture: str, configuration: int
) -> tuple[Any, dict]:
    """Machine code of a kernel in one of its configurations.

    Returns:
        Triton's compiled kernel (`asm`, `metadata`); the configuration.
    """
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    backend = importlib.import_module("triton.backends.compiler")
    tuner = getattr(_loaded(text), name)
    config = tuner.configs[configuration]
    meta = tuner._create_compile_meta(config)
    source = compiler.ASTSource(
        tuner.fn, meta["signature"], meta["constants"], meta["configs"][0]
    )
    options = tuner._create_compile_options(config, meta)
    if architecture.startswith("sm_"):
        target = backend.GPUTarget("cuda", int(architecture[3:]), 32)
    else:
        target = backend.GPUTarget("hip", architecture, 64)
    compiled = triton.compile(source, target=target, options=options)
    return compiled, {**config.kwargs, "num_warps": config.num_warps}


# --- counting what whole operations ask for -------------------------------------------


class Observer(TorchDispatchMode):
    """Tells a function of every operation that is dispatched."""

    def __init__(self, see: Callable[[Any, Any, Any], None]) -> None:
        """Call see(operation, arguments, result) after each one."""
        super().__init__()
        self.see = see

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.see(func, (args, kwargs or {}), result)
        return result


unobserved = _disable_current_modes


@contextmanager
def many_tensors_at_once() -> Iterator[None]:
    """Let meta tensors take the paths of CUDA tensors where one launch serves many."""
    devices = ["cuda", "meta"]
    name = "_get_foreach_kernels_supported_devices"
    with ExitStack() as stack:
        # `torch.optim` hides the module that it imports.
        optimizer = importlib.import_module("torch.optim.optimizer")
        for module in (optimizer, torch.utils._foreach_utils):
            given = functools.partial(_constant, devices)
            stack.enter_context(mock.patch.object(module, name, given))
        yield


def is_view(operation: Any) -> bool:
    """Whether an operation only describes its input anew, which launches nothing."""
    return any(
        one.alias_info is not None and not one.alias_info.is_write
        for one in operation._schema.returns
    )
