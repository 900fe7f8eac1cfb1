"""README and documentation: short, whole, from files that rules wrote, and runnable."""

import csv
import re
from pathlib import Path

import pytest
from made_up_records import made_up_benchmark

from pipeline_src.collecting.runs import collect_runs
from pipeline_src.compression.attachment import attachment_of
from pipeline_src.records.datasets import write_dataset
from pipeline_src.report.publishing import fill_marked_places, publish
from pipeline_src.report.tables.table import to_csv
from pipeline_src.report.tables.training import training_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def test_the_readme_is_read_in_four_minutes():
    assert len(README.split()) <= 1000


def test_tables_of_the_readme_are_cut_out_of_published_files():
    assert README.count("<!-- from ") == README.count("<!-- end -->") >= 1
    assert fill_marked_places(README, ROOT) == README


def test_a_table_that_was_typed_by_hand_is_noticed():
    number = re.search(r"\| lean INT2 \| (\S+) \|", README)[1]
    typed = README.replace(f"| lean INT2 | {number} |", "| lean INT2 | 1.00 |")
    assert fill_marked_places(typed, ROOT) == README != typed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("columns: method;", "columns: methods;", "has no columns .'methods'."),
        ("arxiv_shape | EXACT", "arxiv_shape | INEXACT", "one row .*, got 0"),
        ("arxiv_shape | EXACT", "arxiv_shape", "expected one row .*, got [1-9]"),
    ],
)
def test_what_a_published_file_does_not_hold_is_refused(old, new, message):
    assert old in README
    with pytest.raises(ValueError, match=message):
        fill_marked_places(README.replace(old, new), ROOT)


@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), ROOT / "config" / "README.md", *PAGES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_pictures_links_and_included_files_are_there(page):
    """Also where no site is built; `make docs` asks for headings as well."""
    text = page.read_text(encoding="utf-8")
    targets = LINK.findall(text) + re.findall(r"^:::\{include\} (\S+)", text, re.M)
    for target in targets:
        assert (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_first():
    """The site's builder says so too; this needs none."""
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([a-z-]+/[a-z-_]+)$", first, re.M)
    assert {f"docs/{name}.md" for name in [*listed, "index"]} == {
        path.relative_to(ROOT).as_posix() for path in PAGES
    }


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.stem
)
def test_code_of_the_documentation_runs(page, tmp_path, monkeypatch):
    """A page from top to bottom, beside a dataset such as the default run leaves."""
    folder = tmp_path / "results" / "default"
    folder.mkdir(parents=True)
    write_dataset(made_up_benchmark(), tmp_path / "m.nc")
    write_dataset(collect_runs([], [tmp_path / "m.nc"]), folder / "runs.nc")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), space)


def test_the_count_of_faults_is_that_of_the_published_table():
    """Every kind that the tests count, and nothing lost."""
    with (ROOT / "results" / "published" / "faults.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tests = (ROOT / "tests" / "faults").glob("test_*.py")
    calls = "".join(path.read_text(encoding="utf-8") for path in tests)
    counted = re.findall(r'count_fault\(\s*"([^"]+)"', calls)
    assert sorted(row["fault"] for row in rows) == sorted(counted)
    assert {row["lost_results"] for row in rows} == {"0"}
    trials = sum(int(row["trials"]) for row in rows)
    page = ROOT / "docs" / "how-to" / "troubleshooting.md"
    words = " ".join(page.read_text(encoding="utf-8").split())
    assert f"did {trials} faults of {len(rows)} kinds, and no run was lost" in words


def published(name):
    path = ROOT / "results" / "published" / name
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_granularities_at_equal_bits_take_the_bytes_that_the_page_says():
    groups = {}
    for row in published("sgquant/sgquant.csv"):
        kind, _, bits = row["method"].partition(" at ")
        if bits:
            key = (row["graph"], row["model"], row["hyperparameters"], bits)
            groups.setdefault(key, {})[kind] = float(row["packed_mib"])
    ratios = [
        size / sizes["uniform"]
        for sizes in groups.values()
        for kind, size in sizes.items()
        if kind != "uniform"
    ]
    page = (ROOT / "docs" / "results" / "sgquant.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
    assert f"packed bytes are {ends} of uniform" in words


def test_the_benchmark_says_which_codes_of_lean_it_measured():
    """Tables tell bias from variance since codes share their noise."""
    (first, *_) = published("benchmark/training.csv")
    page = (ROOT / "docs" / "results" / "benchmark.md").read_text(encoding="utf-8")
    before = "before `lean`'s codes shared their noise" in page
    assert before == ("gradient_bias" not in first)


def test_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(code.strip().splitlines()) <= 10
    assert attachment_of(names["model"]) is not None
    assert float(names["loss"]) < 4
    assert all(one.grad is not None for one in names["model"].parameters())


def test_publishing_copies_files_and_fills_the_marks(tmp_path):
    run = tmp_path / "results" / "mine"
    (run / "tables").mkdir(parents=True)
    (run / "figures").mkdir()
    (run / "tables" / "accuracy.md").write_text(
        "| method | seeds | test [%] |\n| --- | ---: | ---: |\n"
        "| FP32 | 5 | 98.1 |\n| EXACT | 5 | 97.5 |\n"
    )
    (run / "tables" / "accuracy.csv").write_text("accuracy\n97.5\n")
    (run / "tables" / "ablation.md").write_text("(not measured)\n")
    (run / "tables" / "ablation.csv").write_text("label,peak\n")
    (run / "figures" / "curves.png").write_bytes(b"png")
    (run / "report.html").write_text("report")
    mark = (
        "<!-- from results/published/mine/accuracy.md\n"
        "     rows: EXACT\n     columns: test [%]; method -->\n"
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{mark}| 1.0 |\n<!-- end -->\nafter\n")
    (old := tmp_path / "results/published/mine").mkdir(parents=True)
    (old / "renamed.md").write_text("of an earlier publication\n")
    publish("mine", tmp_path)
    names = {path.name for path in old.iterdir()}
    assert names == {"accuracy.md", "accuracy.csv", "curves.png"}
    cut = "| test [%] | method |\n| ---: | --- |\n| 97.5 | EXACT |\n"
    assert readme.read_text() == f"before\n{mark}{cut}<!-- end -->\nafter\n"
    assert (tmp_path / "results/published/mine/curves.png").read_bytes() == b"png"
    assert fill_marked_places(readme.read_text(), tmp_path) == readme.read_text()


def test_publishing_a_run_that_was_not_made_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="make the run mine first"):
        publish("mine", tmp_path)


def made_run(root, name, methods, device="NVIDIA H200"):
    """A finished run with its table of training and a table of kernels."""
    run = root / "results" / name
    (run / "tables").mkdir(parents=True)
    (run / "report.html").write_text("report")
    (root / "README.md").write_text("nothing marked")
    record = made_up_benchmark(methods=methods)
    record.attrs["provenance"] = f'{{"device": "{device}"}}'
    write_dataset(record, run / "m.nc")
    runs = collect_runs([], [run / "m.nc"])
    write_dataset(runs, run / "runs.nc")
    (run / "tables" / "training.csv").write_text(to_csv(training_table(runs)))
    return run


def test_benchmarks_are_published_under_the_name_of_their_device(tmp_path):
    run = made_run(tmp_path, "mine", ("pyg-eager", "lean2"))
    (run / "tables" / "kernels.csv").write_text("kernel,time_s\n")
    published = tmp_path / "results" / "published"
    copies = {published / f"mine_{name}_h200.csv" for name in ("training", "kernels")}
    assert copies <= set(publish("mine", tmp_path))
    for copy in copies:
        name = copy.name.split("_")[1]
        assert copy.read_text() == (run / "tables" / f"{name}.csv").read_text()


def test_training_without_a_reference_is_no_benchmark(tmp_path):
    """Publishing another run must not overwrite the benchmark's table."""
    made_run(tmp_path, "mine", ("exact", "lean2"))
    publish("mine", tmp_path)
    assert not list((tmp_path / "results" / "published").glob("*.csv"))


def test_a_benchmark_of_two_devices_is_refused(tmp_path):
    run = made_run(tmp_path, "mine", ("pyg-eager", "lean2"))
    other = made_up_benchmark("flickr_shape", "sage-2x256", ("pyg-eager",))
    write_dataset(other, run / "other.nc")
    write_dataset(collect_runs([], [run / "m.nc", run / "other.nc"]), run / "runs.nc")
    with pytest.raises(ValueError, match=r"one device, got \['NVIDIA H200', 'cpu'\]"):
        publish("mine", tmp_path)


def test_packed_features_are_published_under_their_own_names(tmp_path):
    run = made_run(tmp_path, "mine", ("exact", "lean2"))
    for name in ("sgquant.csv", "abs_search.csv"):
        (run / "tables" / name).write_text(f"graph,{name}\n")
        copy = tmp_path / "results" / "published" / name
        assert copy in publish("mine", tmp_path)
        assert copy.read_text() == f"graph,{name}\n"
