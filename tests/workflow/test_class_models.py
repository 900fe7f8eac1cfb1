"""A model that is a class in the workflow: planned, and trained again."""

import re

from checkouts import compute_nothing, copy_repository, planned, snakemake

CONFIGURATION = """
run: classes
models:
  mine: {class: model_of_a_test.Net}
methods:
  pyg: {label: PyG, policy: pyg}
  compress2: {label: compress INT2, policy: compress, bits: 2}
  compress4: {label: compress INT4, policy: compress, bits: 4}
sweeps:
  - graphs: [digits]
    models: [mine]
    methods: [pyg, compress2]
    seeds: 1
    training: {epochs: 2}
measurements: []
captures: []
byte_books: []
"""
RECORDS = [
    f"results/classes/runs/digits-mine-{method}-s0to0.nc"
    for method in ("pyg", "compress2", "compress4")
]


def test_a_class_is_checked_once_and_its_file_counts(tmp_path, monkeypatch):
    """By scripts that compute nothing; an edit of the class repeats its trainings.

    A method that is added is trained, and nothing else is.
    """
    copy_repository(tmp_path)
    compute_nothing(tmp_path)
    # As PYTHONPATH would; what it holds is never run.
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    model = tmp_path / "modules" / "model_of_a_test.py"
    model.write_text("raise ImportError\n", encoding="utf-8")
    path = tmp_path / "classes.yaml"
    path.write_text(CONFIGURATION, encoding="utf-8")
    first = (*RECORDS[:2], "--configfile", str(path))
    expected = {"prepare_graph": 1, "check_model": 1, "train_run": 2}
    assert planned(*first, cwd=tmp_path) == expected
    snakemake("--cores", "2", *first, cwd=tmp_path)
    assert not planned(*first, cwd=tmp_path)

    more = CONFIGURATION.replace("compress2]", "compress2, compress4]")
    path.write_text(more, encoding="utf-8")
    added = planned(*RECORDS, "--configfile", str(path), cwd=tmp_path)
    assert added == {"train_run": 1}

    model.write_text("raise ImportError  # edited\n", encoding="utf-8")
    # Seeds that are trained already go on with the same class alone: see resume_key.
    text = snakemake("--dry-run", *first, cwd=tmp_path)
    inputs = re.findall(r"^rule train_run:\n +input: (.*)$", text, re.M)
    assert ["modules/model_of_a_test.py" in one for one in inputs] == [True, True]
    assert planned(*first, cwd=tmp_path) == {"check_model": 1, "train_run": 2}
