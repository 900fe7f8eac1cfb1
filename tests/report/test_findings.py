"""Sentences of the first screen: from the tables' own text and nothing else."""

import re

import pytest
from made_up_records import made_up_collection

from pipeline_src.report.findings import findings
from pipeline_src.report.sections import Section, read_markdown
from pipeline_src.report.tables.accuracy import accuracy_table
from pipeline_src.report.tables.table import to_markdown
from pipeline_src.report.tables.training import training_table

HEADER = ["graph", "model", "method", "saved [MiB]", "step peak [MiB]"]
HEADER += ["time per epoch [s] (min … max)"]
MISSING = "not measured"


def training(*rows, header=HEADER):
    return Section("Training", "", header, [], [list(row) for row in rows])


FP32 = ("arxiv", "sage", "FP32", "786.22", "1000.00", "3.00 (2.9 … 3.1)")
EXACT = ("arxiv", "sage", "EXACT", "30.42", "354.04", "2.86 (2.8 … 2.9)")
LEAN = ("arxiv", "sage", "lean INT2", "11.20", "250.00", "1.50 (1.4 … 1.6)")


def test_the_method_of_least_peak_is_compared_with_full_precision():
    assert findings([training(FP32, LEAN, EXACT)]) == [
        "On arxiv with sage, lean INT2 keeps 11.20 MiB for backward, where FP32 keeps "
        "786.22: 70 times less.",
        "Its step peaks at 250.00 MiB above model and data, 0.25 of FP32's 1000.00: "
        "the least of 3 methods.",
        "An epoch takes 0.50 of FP32's time.",
    ]


def test_each_graph_and_model_speaks_for_itself():
    other = [("flickr", *row[1:]) for row in (FP32, EXACT)]
    found = findings([training(FP32, LEAN, *other)])
    assert [text for text in found if text.startswith("On flickr with sage, EXACT")]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((*LEAN[:5], MISSING), 2),  # not timed
        ((*LEAN[:3], MISSING, *LEAN[4:]), 2),  # not counted
        ((*LEAN[:4], MISSING, LEAN[5]), 0),  # no peak: no method to speak of
    ],
)
def test_what_was_not_measured_is_not_said(row, said):
    found = findings([training(FP32, row)])
    assert len(found) == said
    assert not re.search(r"not measured|nan|inf", " ".join(found))


def test_full_precision_alone_is_no_finding():
    assert findings([training(FP32)]) == []
    assert findings([]) == []


def accuracy(*rows):
    header = ["graph", "model", "method", "seeds", "difference to FP32 [points]"]
    header += ["exceeds seed noise"]
    return Section("Accuracy", "", header, [], [list(row) for row in rows])


def test_differences_beyond_seed_noise_are_named():
    rows = [
        ("digits", "sage", "FP32", "5", "–", "–"),
        ("digits", "sage", "EXACT", "5", "-0.67", "yes"),
        ("digits", "sage", "lean INT2", "5", "-0.22", "no"),
        ("digits", "gcn", "EXACT", "1", "-0.22", MISSING),
    ]
    assert findings([accuracy(*rows)]) == [
        "Test accuracy over 5 seeds, paired: 1 of 2 differences from FP32 lie within "
        "seed noise, beyond it EXACT on digits with sage, -0.67 points."
    ]
    assert findings([accuracy(rows[0], rows[2])]) == [
        "Test accuracy over 5 seeds, paired: 1 of 1 differences from FP32 lie within "
        "seed noise."
    ]


def test_every_number_stands_in_a_table_or_is_a_ratio_of_two(tmp_path):
    """On tables as they are made: the headers that findings read are there."""
    runs = made_up_collection(tmp_path)
    tables = [to_markdown(table(runs)) for table in (training_table, accuracy_table)]
    sections = [read_markdown(page) for page in tables]
    found = findings(sections)
    assert any("MiB for backward" in text for text in found)
    assert any("differences from FP32" in text for text in found)
    for text in found:
        for number in re.findall(r"\d+\.\d+", text):
            assert number in " ".join(tables) or "of FP32" in text or "time" in text
