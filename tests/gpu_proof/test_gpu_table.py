"""What counts as worse, what is skipped and why: needs no Triton."""

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from tests.gpu_proof import pages, table, versions
from tests.gpu_proof.machine_code import first_timed, of_sass, unlike_eager

ROOT = Path(__file__).resolve().parents[2]


def row(**figures: object) -> dict[str, str]:
    plain = dict.fromkeys(table.COLUMNS, "1")
    return plain | {name: str(value) for name, value in figures.items()}


@pytest.mark.parametrize(
    ("column", "old", "new", "verdict"),
    [
        ("registers", 40, 41, "worse"),
        ("registers", 40, 39, "better, commit it"),
        ("load_bytes", "16.0", "4.0", "worse"),
        ("load_bytes", "4.0", "16.0", "better, commit it"),
        ("bytes_ratio", "1.00", "1.01", "worse"),
    ],
)
def test_a_change_is_shown_and_judged(column, old, new, verdict):
    before, after = [row(**{column: old})], [row(**{column: new})]
    expected = f"{verdict}: 1, 1, 1: {column} {old} -> {new}"
    assert table.KERNELS.differences(before, after) == [expected]


def test_equal_rows_show_nothing_and_new_and_gone_ones_are_named():
    one, other = row(case="a"), row(case="b")
    assert table.KERNELS.differences([one], [one]) == []
    assert table.KERNELS.differences([one], [other]) == ["new: b, 1, 1"]
    assert table.KERNELS.gone([one], [other]) == ["gone: a, 1, 1"]


def test_a_table_is_read_as_it_was_written(tmp_path):
    written = dataclasses.replace(table.KERNELS, path=tmp_path / "t.csv")
    assert written.read() == []
    written.write([row(case="a"), row(case="b, c")])
    assert written.read() == [row(case="a"), row(case="b, c")]


def test_every_figure_has_a_direction():
    described = {name for name, better in table.COLUMNS.items() if better is None}
    assert described == {"case", "kernel", "device", "configuration"}


SASS = """
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 LDG.E.U8 R4, [R2.64] ;
        /*0030*/               @P1 STG.E desc[UR4][R2.64], R5 ;
        /*0040*/                   DMUL R4, R4, R6 ;
        /*0050*/                   F2F.F64.F32 R4, R6 ;
        /*0060*/                   STL [R1], R6 ;
        /*0070*/                   NOP ;
"""


def test_instructions_are_counted_by_kind():
    assert of_sass(SASS) == {
        "instructions": 6,
        "float64": 2,
        "spills": 1,
        "loads": {"16": 1, "1": 1},
        "stores": {"4": 1},
    }


@pytest.mark.parametrize(
    ("spills", "allowed", "chosen"),
    [((0, 0), 0, 1), ((3, 0), 0, 2), ((3, 0), 3, 1), ((3, 2), 0, 1)],
)
def test_what_spills_is_passed_over_as_on_a_device(spills, allowed, chosen):
    tried = [
        {"spills": n, "local": 0, "configuration": i}
        for i, n in enumerate(spills, start=1)
    ]
    assert first_timed(iter(tried), allowed)["configuration"] == chosen


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("fma.rn.f32 \t%r1, %r2, %r3, %r4;", 1),
        ("div.full.f32 \t%r1, %r2, %r3;", 1),
        ("div.full.ftz.f32 \t%r1, %r2, %r3;", 1),
        ("rcp.approx.ftz.f32 \t%r1, %r2;", 1),
        ("sqrt.approx.ftz.f32 \t%r1, %r2;", 1),
        ("sqrt.rn.f32 \t%r1, %r2;", 0),
        ("div.rn.f32 \t%r1, %r2, %r3;", 0),
        ("mul.f32 \t%r1, %r2, %r3;\n add.f32 \t%r1, %r2, %r3;", 0),
    ],
)
def test_what_rounds_unlike_plain_operations_is_counted(line, count):
    assert unlike_eager(line) == count


@pytest.mark.parametrize("name", versions.PINS)
def test_another_version_is_a_reason_to_skip(name, monkeypatch):
    monkeypatch.setattr(versions, "_is_installed", lambda _: True)
    found = {**versions.PINS, name: "1.0.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda one: found[one] + "+cpu")
    expected = f"{name} {versions.PINS[name]}, but 1.0.0 is installed: make gpu-proof"
    assert expected in versions.obstacle()
    found[name] = versions.PINS[name]
    assert versions.obstacle() == ""


def test_without_triton_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(versions, "_is_installed", lambda name: name != "triton")
    assert "needs triton==3.7.1: make gpu-proof installs it" in versions.obstacle()


def test_the_proof_and_the_project_pin_the_same_versions():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name, version in versions.PINS.items():
        assert f"{name}=={version}" in pins


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"faults": [], "kernels": {"k": "text"}}, True),
        ({"faults": ["not generated"], "kernels": {}}, False),
        ({"sm_80": {"spills": 0}, "gfx942": {"spills": 0}}, True),
        ({"sm_80": {"spills": 0}, "gfx942": {"fault": "no"}}, False),
    ],
)
def test_a_fault_is_never_remembered(answer, kept, monkeypatch, tmp_path):
    """Its cause may lie elsewhere, and then it would be told for ever."""
    pretended = pytest.importorskip("tests.gpu_proof.prove")
    monkeypatch.setattr(pretended, "CACHE", tmp_path)
    monkeypatch.setattr(pretended, "_answers", lambda *_: iter([("one", answer)]))
    one = {"one": "x"}
    assert pretended._through_cache(one, one, one, "generation") == {"one": answer}
    assert (tmp_path / "x.json").exists() == kept


def test_a_share_of_copy_bandwidth_is_the_slower_of_bytes_and_instructions():
    on_h100 = {"device": "sm_90", "bytes_per_value": "10", "bytes_ratio": "1.25"}
    few, many = (on_h100 | {"instructions_per_value": n} for n in ("0", "1000"))
    assert pages.share_of_copy(few) == pytest.approx(0.8)  # it moves 1.25 times as much
    h100 = pages.DEVICES["sm_90"]
    expected = 8 / h100.copied / (1000 / h100.issued)
    assert pages.share_of_copy(many) == pytest.approx(expected)


@pytest.mark.skipif(not table.KERNELS.path.exists(), reason="no table is published yet")
def test_pages_and_estimates_are_made_of_the_committed_tables():
    for path, text in pages.pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            "python -m tests.gpu_proof.pages"
        )
    assert table.ESTIMATES.read() == pages.estimates(table.KERNELS.read())


def proven_case(name="decompress 2 bits", launches=1, spilling=()):
    """What is known of a case without a fault, but for spills on some devices."""
    code = {
        **{"configuration": 1, "registers": 1, "instructions": 1, "threads": 1},
        **{"float64": 0, "spills": 0, "local": 0, "loads": {}, "stores": {}},
    }
    codes = {
        device: code | {"spills": int(device in spilling)}
        for device in table.ARCHITECTURES
    }
    return {
        **{"case": name, "kernel": f"blockwise._{name.split()[0]}", "faults": []},
        **{"machine_code": {"k": codes}, "extern_calls": [], "modules": 1},
        "launches": [{"kernel": "k", "xnumel": 1}] * launches,
        **{"values": 1, "bytes_needed": 1, "bytes_moved": 1, "bytes_read_again": 0},
    }


def test_spills_are_forbidden_where_the_module_was_written_for():
    found = table.broken_laws(proven_case(spilling=table.ARCHITECTURES))
    assert found == [
        f"decompress 2 bits: spills is 1 on {device}, at most 0"
        for device in ("sm_80", "sm_90")
    ]
    [amd] = [one for one in table.ARCHITECTURES if one not in table.NO_SPILLS]
    assert table.COLUMNS["spills"] is False  # a larger figure in the table is worse
    assert table.broken_laws(proven_case(spilling=(amd,))) == []


@pytest.mark.parametrize(
    ("name", "launches", "lawful"),
    [
        ("compress 2 bits block 64", 1, True),
        ("compress 2 bits block 64", 2, False),
        ("compress 2 bits block 63 uneven", 3, True),
        ("compress 2 bits block 63", 4, False),
        ("decompress 2 bits block 63", 2, False),
    ],
)
def test_only_compressing_blocks_that_share_words_takes_more_launches(
    name, launches, lawful
):
    assert (table.broken_laws(proven_case(name, launches)) == []) == lawful


def test_a_case_that_was_counted_before_is_shown_as_then_and_now():
    old = {"case": "a", "launches": "3", "vector_loads": "none", "spills": ""}
    rows = [
        row(case="a", device="sm_90", launches=1, load_bytes=16),
        row(case="a", device="sm_80", launches=7),
        row(case="b", device="sm_90"),
    ]
    [line] = pages._changes(rows, [old])
    assert line == "| a | 3 -> 1 |  -> 1 | none -> 16 |"


def test_every_case_that_was_counted_before_is_still_one():
    cases = pytest.importorskip("tests.gpu_proof.cases").all_cases()
    before = table.BEFORE.read()
    assert before
    assert {one["case"] for one in before} <= set(cases)
