import itertools
import os
import subprocess
import sys
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from pipeline_src.quant.compilers import (
    COMPILE_CHOICES,
    fill_tables_once,
    plain_kernels_warning,
)
from pipeline_src.quant.fusion import (
    MIN_NUMEL_ON_CPU,
    NO_SPILLS,
    NUMERICS,
    fuse,
    fusion_pays,
    instead_of_compiled,
    resolve_compile,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def program(path):
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("choice", ["auto", "true"])
def test_with_a_compiler_a_wish_is_granted(choice, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "works"))
    assert plain_kernels_warning(choice) is None
    assert resolve_compile(choice, CPU) == choice


@pytest.mark.parametrize("choice", ["auto", "true"])
def test_without_a_compiler_the_plain_path_runs_with_a_warning(choice, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resolve_compile(choice, CPU) == "false"
    warning = plain_kernels_warning(choice)
    assert "No C++ compiler was found (no-such-compiler)" in warning
    assert "the results are the same" in warning
    assert "Install g++ (or set CXX)" in warning


def test_a_compiler_off_the_path_is_not_found(monkeypatch, tmp_path):
    """It was on the PATH a moment ago, so that nothing may be remembered."""
    program(tmp_path / "some-cxx")
    monkeypatch.setenv("CXX", "some-cxx")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert resolve_compile("auto", CPU) == "auto"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert resolve_compile("auto", CPU) == "false"


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "$HOME", "a;b", "(a)"])
def test_folders_that_torch_would_have_to_quote_mean_plain_kernels(
    name, monkeypatch, tmp_path
):
    """Of its kernels, and of itself: the commands that it builds would fall apart."""
    monkeypatch.setenv("CXX", program(tmp_path / "works"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
    message = f"torch gives {str(tmp_path / name)!r} to the compiler unquoted"
    assert message in plain_kernels_warning("true")
    assert "Set TORCHINDUCTOR_CACHE_DIR to" in plain_kernels_warning("true")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert resolve_compile("auto", CPU) == "auto"
    (tmp_path / name / "torch").mkdir(parents=True)
    (tmp_path / name / "torch" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path / name)
    assert f"{str(tmp_path / name / 'torch')!r} to the" in plain_kernels_warning("true")
    assert resolve_compile("auto", CPU) == "false"


def test_a_gpu_needs_no_cpp_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resolve_compile("auto", CUDA) == "auto"


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_compile_false_says_what_it_costs(device):
    assert resolve_compile("false", device) == "false"
    warning = plain_kernels_warning("false")
    assert "compile: false is set" in warning
    assert "time and step peak are not those of the fused kernels" in warning


def test_another_word_is_refused():
    with pytest.raises(
        ValueError, match=r"one of \('auto', 'true', 'false'\), got 'yes'"
    ):
        resolve_compile("yes", CPU)


def test_auto_fuses_where_a_compilation_pays():
    """On a GPU always; on a CPU from MIN_NUMEL_ON_CPU values on."""
    for numel in (0, MIN_NUMEL_ON_CPU - 1, MIN_NUMEL_ON_CPU, 2 * MIN_NUMEL_ON_CPU):
        assert fusion_pays(numel, CUDA, "auto")
        assert fusion_pays(numel, CPU, "auto") == (numel >= MIN_NUMEL_ON_CPU)


def test_true_and_false_hold_for_every_size_and_device():
    for numel, device in itertools.product([1, MIN_NUMEL_ON_CPU], [CPU, CUDA]):
        assert fusion_pays(numel, device, "true")
        assert not fusion_pays(numel, device, "false")
    assert COMPILE_CHOICES == ("auto", "true", "false")


def test_the_twin_is_made_at_the_first_call_and_kept(monkeypatch):
    made = []

    def compile(plain, **options):
        made.append(options)
        return lambda *arguments: ("compiled", plain(*arguments))

    monkeypatch.setattr(torch, "compile", compile)

    def double(x):
        """Twice x."""
        return 2 * x

    fused = fuse(double, rows={})
    assert made == []
    assert (fused(1), fused(4)) == (("compiled", 2), ("compiled", 8))
    options = NUMERICS | NO_SPILLS
    assert made == [{"fullgraph": True, "dynamic": False, "options": options}]
    assert (fused.__name__, fused.__doc__) == ("double", "Twice x.")


class Codes(NamedTuple):
    packed: torch.Tensor  # (rows, width)
    table: torch.Tensor  # (levels,)


def decode(gradient, codes, more, bits):
    """Takes one argument of each kind, and counts rows in each of them."""
    scaled = (codes.packed + codes.table.sum()) * (2**bits - 1)
    return gradient.T + scaled + sum(part[: len(gradient.T)] for part in more)


ROWS = {"gradient": 1, "codes.packed": 0, "more": 0}


def arguments(rows, width=4, bits=2, more=3):
    ones = torch.ones(rows + more, width)
    codes = Codes(torch.ones(rows, width), torch.ones(5))
    return torch.ones(width, rows), codes, (ones, ones), bits


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that Dynamo hands to the compiler, which runs them as they are."""
    torch.compiler.reset()
    found = []

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda plain, options, **rest: compile(plain, backend=keep, **rest),
    )
    yield found
    torch.compiler.reset()


def test_a_number_of_rows_adds_no_module_and_a_constant_one(graphs):
    fused = fuse(decode, ROWS)
    for rows, more in [(8, 3), (4, 1), (1000, 8), (5, 0), (2, 2)]:
        given = arguments(rows, more=more)
        assert torch.equal(fused(*given), decode(*given))
    assert len(graphs) == 1
    for number, other in enumerate([{"width": 6}, {"bits": 8}, {"bits": 4}], 2):
        for rows in (8, 9):
            given = arguments(rows, **other)
            assert torch.equal(fused(*given), decode(*given))
        assert len(graphs) == number


def test_bits_are_constants_of_the_graph(graphs):
    """After a change of bits Dynamo would make them a symbol, and 2**bits a `pow`."""
    fused = fuse(decode, ROWS)
    for bits in (1, 2, 8):
        fused(*arguments(8, bits=bits))
    for graph, levels in zip(graphs, (1, 3, 255), strict=True):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        assert not any("pow" in str(node.target) for node in calls)
        assert any(node.args[1:] == (levels,) for node in calls)


def test_neither_a_gradient_nor_its_mode_nor_a_view_adds_a_module(graphs):
    def double(x):
        return 2 * x

    fused = fuse(double, rows={"x": 0})
    leaf = torch.ones(6, 4, requires_grad=True)
    with torch.no_grad():
        fused(torch.ones(6, 4))
    for x in (leaf, torch.nn.Parameter(torch.ones(6, 4)), torch.ones(48)[:24]):
        assert not fused(x.view(6, 4)).requires_grad
    assert len(graphs) == 1


def test_marks_stay_off_the_tensors_of_the_caller(graphs):
    given = arguments(8)
    fuse(decode, ROWS)(*given)
    assert vars(given[0]) == vars(given[1].packed) == {}


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_run_plain(rows, graphs):
    given = arguments(rows)
    assert torch.equal(fuse(decode, ROWS)(*given), decode(*given))
    assert graphs == []


def test_a_kernel_that_fixes_its_rows_is_refused(graphs):
    """It would compile again for every number of rows."""

    def fixed(x):
        return x * 2 if x.shape[0] == 8 else x

    with pytest.raises(ConstraintViolationError, match="8"):
        fuse(fixed, rows={"x": 0})(torch.ones(8, 4))


def test_what_is_asked_ahead_is_what_the_compiler_will_want():
    """In a thread, so that this process goes on; the compiler keeps the answer."""
    code = (
        "import threading\n"
        "from pipeline_src.quant.compilers import probe_ahead\n"
        "probe_ahead()\n"
        "for thread in threading.enumerate()[1:]:\n"
        "    thread.join()\n"
        "from torch._inductor.cpu_vec_isa import valid_vec_isa_list\n"
        "print(valid_vec_isa_list.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_kernels_can_be_handed_to_somebody_else():
    """Within the context the compiler gets none of them, and after it all again."""
    kernel = fuse(lambda x: x + 1, rows={"x": 0})
    x, seen = torch.zeros(4, 2), []

    def run(plain, arguments):
        seen.append(arguments)
        return plain(*arguments)

    with instead_of_compiled(run):
        assert torch.equal(kernel(x), x + 1)
    assert len(seen) == 1
    with pytest.raises(ZeroDivisionError), instead_of_compiled(run):
        _ = 1 / 0
    assert torch.equal(kernel(x), x + 1)
    assert len(seen) == 1


def unwrapped(function):
    return getattr(function, "__wrapped__", function)


def test_tables_of_the_compiler_are_filled_once_and_its_code_is_the_same():
    """Left alone it fills them for each operation; a new rule fills them again."""
    # Here, because the compiler takes a second to import.
    from torch._inductor import config, dtype_propagation, utils

    table = dtype_propagation.DtypePropagationOpsHandler
    fills = []

    def fill(self):
        fills.append(1)
        unwrapped(original)(self)

    original = table.__init__

    def code_and_fills():
        torch.compiler.reset()
        fills.clear()
        function = torch.compile(lambda x: (x * 2 + 1).relu(), options=NUMERICS)
        _, (code,) = utils.run_and_get_code(function, torch.ones(70))
        _, _, code = code.partition("\n")  # the first line counts compilations
        return code, len(fills)

    no_cache = config.patch(force_disable_caches=True)
    with patch.object(table, "__init__", fill), no_cache:
        code, often = code_and_fills()
        assert often > 1, "torch fills once by itself: fill_tables_once can go"
        fill_tables_once()
        assert code_and_fills() == (code, 1)
        assert code_and_fills() == (code, 0)
        fill_tables_once()  # a second call wraps nothing
        assert code_and_fills() == (code, 0)
        rules = utils.op_dtype_propagation_rules
        with patch.dict(rules, {"made_up": next(iter(rules.values()))}):
            table()
            assert len(fills) == 1
            assert hasattr(table(), "made_up")
    torch.compiler.reset()
    del table().made_up
