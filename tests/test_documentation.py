"""What the documentation's own extensions make of our sources."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def comments_of(monkeypatch):
    pytest.importorskip("sphinx", reason="comes with the extra docs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    from signature_comments import comments_of

    yield comments_of
    sys.modules.pop("signature_comments", None)


SOURCE = """
    def pack(
        mask: Tensor,  # bool, any shape
        # How it is done,
        # in two lines.
        compile: str = "auto",
        bits: int = 2,  # of a code
        plain: float = 0.0,
    ) -> Tensor:  # packed
        words: Tensor = mask  # no parameter
"""


def test_comments_beside_and_above_a_parameter_describe_it(comments_of):
    assert comments_of(SOURCE) == {
        "mask": "bool, any shape",
        "compile": "How it is done, in two lines.",
        "bits": "of a code",
    }
