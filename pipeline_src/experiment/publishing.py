"""Figures quoted in the README, copied from files that rules wrote.

The README shows tables and figures of published results between marks such as

    <!-- from results/published/default/accuracy.md -->
    ...
    <!-- end -->

`publish` copies what one configuration made to results/published/, and writes the
marked places anew; `marked_places` lets a test compare them with the files. Nothing
between marks is typed by hand.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_MARKED = re.compile(r"(<!-- from (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PUBLISHED = Path("results/published")


def marked_places(readme: str) -> Iterator[tuple[Path, str]]:
    """Each marked file and the text that stands for it."""
    for match in _MARKED.finditer(readme):
        yield Path(match[2]), match[3]


def fill_marked_places(readme: str, root: Path) -> str:
    """The README with the present content of each marked file.

    Raises:
        FileNotFoundError: if a marked file does not exist.
    """

    def fill(match: re.Match[str]) -> str:
        return match[1] + (root / match[2]).read_text(encoding="utf-8") + match[4]

    return _MARKED.sub(fill, readme)


def publish(run: str, root: Path) -> list[Path]:
    """Copy a run's tables and figures to results/published/, and fill the README.

    Raises:
        FileNotFoundError: if the run has not been made.
    """
    source, target = root / "results" / run, root / PUBLISHED / run
    if not (source / "report.html").exists():
        raise FileNotFoundError(f"{source}/report.html: make the run {run} first")
    files = [*source.glob("tables/*"), *source.glob("figures/*.png")]
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    readme = root / "README.md"
    text = fill_marked_places(readme.read_text(encoding="utf-8"), root)
    readme.write_text(text, encoding="utf-8")
    return sorted(target / file.name for file in files)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for path in publish(name, Path.cwd()):
            print(path)
