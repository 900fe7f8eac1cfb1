import itertools
import os

import pytest
import torch

from pipeline_src.quant.compilers import COMPILE_CHOICES, plain_kernels_warning
from pipeline_src.quant.fusion import (
    MIN_NUMEL_ON_CPU,
    fuse,
    fusion_pays,
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

    fused = fuse(double)
    assert made == []
    assert (fused(1), fused(4)) == (("compiled", 2), ("compiled", 8))
    assert made == [{"fullgraph": True, "dynamic": True}]
    assert (fused.__name__, fused.__doc__) == ("double", "Twice x.")
