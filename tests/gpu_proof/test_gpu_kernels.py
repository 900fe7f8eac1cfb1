"""Every compiled kernel is right for a GPU, and costs what the table says."""

from types import SimpleNamespace

import pytest

from tests.gpu_proof import versions

pytestmark = pytest.mark.slow
if reason := versions.obstacle():
    pytest.skip(reason, allow_module_level=True)

from tests.gpu_proof import prove, table  # noqa: E402
from tests.gpu_proof.cases import all_cases  # noqa: E402
from tests.gpu_proof.planted import PLANTED, planted_cases  # noqa: E402
from tests.gpu_proof.recording import kernels  # noqa: E402

CASES = all_cases()


@pytest.fixture(scope="module")
def proven():
    return {one["case"]: one for one in prove.proven(CASES.values())}


def test_every_kernel_has_a_case():
    library = {name for name in kernels() if not name.startswith("planted.")}
    assert library == {case.kernel for case in CASES.values()}


@pytest.mark.whole_proof
@pytest.mark.parametrize("name", CASES)
def test_laws_hold(name, proven):
    """Compiles everywhere, computes the plain function's bits, moves what it must."""
    assert table.broken_laws(proven[name]) == []


@pytest.mark.whole_proof
def test_the_committed_table_is_what_is_found(proven):
    """If this shows nothing worse: python -m tests.gpu_proof.prove --publish."""
    rows, committed = table.rows_of(proven.values()), table.KERNELS.read()
    assert table.KERNELS.differences(committed, rows) == []
    assert table.KERNELS.gone(committed, rows) == []


def test_what_has_changed_is_told_by_content(monkeypatch):
    """A file behind a kernel, or a file of the proof; nothing else."""
    cases = [CASES["pack_mask"], CASES["projection"]]
    rows = prove.digests(cases)
    monkeypatch.setattr(table, "DIGESTS", SimpleNamespace(read=lambda: rows))
    assert prove.changed(cases) == []
    library = prove._library_of
    monkeypatch.setattr(
        prove,
        "_library_of",
        lambda kernel: library(kernel) + [b"x"] * (kernel == "projection._entries"),
    )
    assert prove.changed(cases) == [CASES["projection"]]
    monkeypatch.setattr(prove, "PINS", {"torch": "9"})
    assert prove.changed(cases) == cases


@pytest.fixture(scope="module")
def proven_faults():
    return {one["case"]: one for one in prove.proven(planted_cases().values())}


@pytest.mark.parametrize(("name", "verdict"), [(n, v) for n, (_, v) in PLANTED.items()])
def test_a_planted_fault_is_caught(name, verdict, proven_faults):
    broken = table.broken_laws(proven_faults[f"planted {name}"])
    assert any(verdict in line for line in broken), broken
