"""The report as a browser shows it, where one is installed."""

import html
import json
import re
import shutil
import subprocess

import pytest
from made_up_records import (
    made_up_boundaries,
    made_up_collection,
    made_up_distributions,
)

from pipeline_src.report.drawing.rendering import render
from pipeline_src.report.figures.boundaries import plot_boundaries
from pipeline_src.report.page import write_report
from pipeline_src.report.tables.accuracy import accuracy_table
from pipeline_src.report.tables.distributions import distribution_table
from pipeline_src.report.tables.memory import memory_table
from pipeline_src.report.tables.table import to_markdown
from pipeline_src.report.tables.training import training_table

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    pytest.mark.slow,
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--window-size=1280,900"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
# Written into the page itself, because a file has no other way to tell.
MEASURE = """<script>
addEventListener("load", () => {
  const seen = { errors: [] };
  const style = getComputedStyle(document.body);
  seen.colors = [style.color, style.backgroundColor];
  seen.width = document.documentElement.scrollWidth;
  seen.below = document.getElementById("figures").getBoundingClientRect().top;
  seen.findings = document.querySelectorAll(".findings li").length;
  const open = document.querySelectorAll("details[open]").length;
  dispatchEvent(new Event("beforeprint"));
  seen.printed = document.querySelectorAll("details:not([open])").length;
  dispatchEvent(new Event("afterprint"));
  seen.restored = document.querySelectorAll("details[open]").length === open;
  const buttons = [...document.querySelectorAll("#table1 th button")];
  const button = buttons.find((one) => one.textContent.startsWith("saved"));
  const column = () => [...document.querySelectorAll("#table1 tbody tr")].map(
    (row) => row.cells[button.parentElement.cellIndex].textContent);
  button.click(); seen.rising = column();
  button.click(); seen.falling = column();
  seen.sorted = button.parentElement.getAttribute("aria-sort");
  const head = getComputedStyle(button.parentElement);
  seen.sticky = head.position;
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    runs = made_up_collection(folder)
    tables = [
        memory_table(runs),
        training_table(runs),
        accuracy_table(runs),
        distribution_table([made_up_distributions()]),
    ]
    figure = {"svg": render(plot_boundaries(made_up_boundaries()), "svg")}
    names = ("accuracy_memory", "pareto", "boundaries")
    text = write_report(
        runs, list(map(to_markdown, tables)), dict.fromkeys(names, figure), "a", "b"
    )
    path = folder / "report.html"
    path.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    return path


def opened(page, *flags):
    """What the page measured of itself, and what the browser logged."""
    done = subprocess.run(
        [
            *(BROWSER, *FLAGS, *flags, f"--user-data-dir={page.parent / 'profile'}"),
            *("--virtual-time-budget=5000", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-2000:]
    return json.loads(html.unescape(seen[1])), done.stderr


@pytest.fixture(scope="module")
def seen(page):
    return opened(page)


def test_nothing_is_logged_to_the_console(seen):
    assert "CONSOLE" not in seen[1]


def test_nothing_scrolls_sideways_and_findings_come_first(seen):
    measured, _ = seen
    assert measured["width"] <= 1280
    assert measured["findings"] >= 3
    assert measured["below"] > 400, "two pictures stand before the other figures"


def test_tables_are_sorted_by_number_fold_and_open_for_printing(seen):
    measured, _ = seen
    numbers = [float(text) for text in measured["rising"]]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 2
    assert measured["falling"] == measured["rising"][::-1]
    assert measured["sorted"] == "descending"
    assert measured["sticky"] == "sticky"
    assert measured["printed"] == 0
    assert measured["restored"]


def luminance(color):
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(page, scheme):
    """Contrast of at least 7, as WCAG asks for at its highest level."""
    flag = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    colors = opened(page, flag)[0]["colors"]
    text, ground = map(luminance, colors)
    assert (text > ground) == (scheme == "dark")
    high, low = max(text, ground), min(text, ground)
    assert (high + 0.05) / (low + 0.05) >= 7
