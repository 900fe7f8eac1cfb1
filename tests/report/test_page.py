"""The report: one page, everything inside it, nothing outside."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_up_records import (
    made_up_boundaries,
    made_up_collection,
    made_up_distributions,
)

from pipeline_src.collecting.checks import describe_checks
from pipeline_src.report.drawing.rendering import render
from pipeline_src.report.figures.boundaries import plot_boundaries
from pipeline_src.report.figures.gallery import FIGURES
from pipeline_src.report.markdown import as_shown, row
from pipeline_src.report.page import read_figures, write_report
from pipeline_src.report.sections import read_markdown
from pipeline_src.report.tables.accuracy import accuracy_table
from pipeline_src.report.tables.boundaries import boundaries_table
from pipeline_src.report.tables.distributions import distribution_table
from pipeline_src.report.tables.memory import memory_table
from pipeline_src.report.tables.table import Table, to_markdown

CAPTIONS = Path(__file__).resolve().parents[2] / "workflow" / "report" / "figure.rst"


class Page(HTMLParser):
    """What a browser would see: links, identifiers, cells; and that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.links, self.identifiers, self.cells, self.open = [], [], [], []
        self.captions = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [
            attributes[name] for name in ("src", "href") if name in attributes
        ]
        self.identifiers += [attributes["id"]] if "id" in attributes else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "button"):
            self.cells.append(data)
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data.strip())


PAIR = (("Full", "| 1 |\n"), ("Empty", ""))  # titles of tables and their rows


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return made_up_collection(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(collected):
    figure = {"svg": render(plot_boundaries(made_up_boundaries()), "svg"), "png": b"x"}
    pages = [
        accuracy_table(collected),
        memory_table(collected),
        distribution_table([made_up_distributions()]),
        boundaries_table(made_up_boundaries()),
    ]
    return write_report(
        collected,
        [to_markdown(table) for table in pages],
        dict.fromkeys(FIGURES, figure),
        CAPTIONS.read_text(encoding="utf-8"),
        describe_checks(collected),
    )


def test_the_page_refers_to_nothing_outside_itself(page):
    """No address anywhere; a link leads into the page or holds its content."""
    assert not re.search(r"https?://|url\(|@import", page)
    seen = Page(page)
    assert seen.open == []
    for link in seen.links:
        inside = link.startswith("#") and link[1:] in seen.identifiers
        assert inside or link.startswith("data:image/svg+xml;base64,"), link[:60]
    assert sum(link.startswith("data:") for link in seen.links) == len(FIGURES)


def test_the_page_holds_every_cell_of_every_table(page, collected):
    cells = set(Page(page).cells)
    for table in (accuracy_table(collected), memory_table(collected)):
        assert set(table.shown.columns) <= cells
        assert set(table.shown.to_numpy().ravel()) <= cells


def test_every_figure_has_its_own_caption(page):
    captions = [text for text in Page(page).captions if text]
    assert len(set(captions)) == len(captions) == len(FIGURES)
    assert all(len(text) > 40 for text in captions)


def test_provenance_and_checks_are_on_the_page(page, collected):
    cells = Page(page).cells
    assert {"torch", "device", "source digest", "0123abcd" * 8} <= set(cells)
    for line in describe_checks(collected).splitlines():
        assert line in page


# Signs of Markdown, of GitHub's mathematics, of HTML, alone and beside each other.
SIGNS = [
    *("$5 to $6", "a|b", "\\", "\\|", "a\\", "*b* **c** ~~d~~ `e`", "_f_ g_h"),
    *("<b>i</b>", "&amp; & &#36;", "[j](k) [l] ![m](n)", "{x} % %s ^2", "<!-- o -->"),
]


@pytest.mark.parametrize("text", SIGNS)
def test_text_is_shown_as_it_stands(collected, text):
    """In Markdown after backslashes, on the page and in a terminal bare."""
    shown = pd.DataFrame({"method": [text], "n": ["1"]})
    markdown = to_markdown(Table("Title", "Note", shown, shown))
    assert read_markdown(markdown).rows == [[text, "1"]]
    assert f"| {text} | 1 |" in as_shown(markdown)
    page = write_report(collected, [markdown], {}, "", "")
    assert text in Page(page).cells
    assert "<b>i" not in page


def test_markdown_reads_the_signs_of_a_label_as_text():
    """By a reader of Markdown: no tag, no emphasis, no link, nothing lost."""
    render = pytest.importorskip("markdown_it").MarkdownIt().enable("table").render
    for text in SIGNS:
        (cell,) = re.findall("<td>(.*)</td>", render(f"| a |\n|---|\n{row([text])}"))
        assert html.unescape(cell) == text
        assert "<" not in cell


def test_names_are_escaped(collected):
    """A label with angle brackets is text, not a tag."""
    table = "# Title\n\nNote\n\n| method |\n| --- |\n| <b>a \\| b</b> |\n"
    page = write_report(collected, [table], {}, "", "")
    assert "&lt;b&gt;a | b&lt;/b&gt;" in page


def test_a_table_without_rows_is_left_out(collected):
    tables = [f"# {name}\n\n| a |\n|---|\n{rows}" for name, rows in PAIR]
    page = write_report(collected, tables, {}, "", "")
    assert "<summary>Full</summary>" in page
    assert "Empty" not in page


def test_a_table_survives_markdown(collected):
    table = accuracy_table(collected)
    section = read_markdown(to_markdown(table))
    assert section.header == list(table.shown.columns)
    assert section.rows == table.shown.to_numpy().tolist()
    assert (section.title, section.note) == (table.title, table.note)
    with pytest.raises(ValueError, match="expected a Markdown page with a table"):
        read_markdown("# nothing")


def test_figures_are_read_by_name_and_format(tmp_path):
    for name in ("a.png", "a.svg", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    paths = [tmp_path / name for name in ("a.png", "a.svg", "b.png")]
    assert read_figures(paths) == {
        "a": {"png": b"a.png", "svg": b"a.svg"},
        "b": {"png": b"b.png"},
    }


def test_a_figure_in_a_format_no_browser_shows_is_refused(collected):
    with pytest.raises(ValueError, match=r"one of \['svg', 'png'\], got \['pdf'\]"):
        write_report(collected, [], {"a": {"pdf": b""}}, "", "")
