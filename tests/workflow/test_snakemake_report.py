"""`snakemake --report`: every figure with its caption and the rule that made it."""

import json
import re
from pathlib import Path

import pytest
from checkouts import snakemake

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = (ROOT / "workflow" / "report" / "figure.rst").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(finished):
    """The report of a finished run, made where every address leads nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        snakemake("--report", "page.html", cwd=finished)
    return (finished / "page.html").read_text(encoding="utf-8")


def entry(page, path):
    """What the report holds of one figure, as the browser reads it."""
    start = page.index(f'"{path}": {{') + len(path) + 4
    return json.JSONDecoder().raw_decode(page, start)[0]


def test_every_figure_has_its_caption_and_provenance(finished, page):
    files = sorted((finished / "results" / "default" / "figures").iterdir())
    assert len(files) == 2 * 8
    for file in files:
        shown = entry(page, file.relative_to(finished).as_posix())
        (caption,) = re.findall(rf'figure == "{file.stem}" %}}\n(.*)\n', CAPTIONS)
        words = re.sub(r"<[^>]+>|\s+", " ", shown["caption"]).split()
        assert words == caption.split(), file
        job = shown["job_properties"]
        assert (job["rule"], job["wildcards"]) == ("plot_figure", f"figure={file.stem}")
        assert shown["data_uri"].partition("base64,")[2], "the figure itself"


def test_the_page_asks_the_network_for_nothing(page):
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.https?:", page)
