"""A ggplot as the content of a file, the same bytes every time."""

import io

import matplotlib as mpl
from plotnine import ggplot

RESOLUTION = 200  # dots per inch of a PNG


def render(plot: ggplot, file_format: str) -> bytes:
    """Return the figure as a file's content; equal figures give equal bytes.

    Raises:
        ValueError: if file_format is neither "png" nor "svg".
    """
    if file_format not in ("png", "svg"):
        raise ValueError(f"file_format must be png or svg, got {file_format!r}")
    # Without a date and with a fixed salt for its identifiers, an SVG is reproducible.
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    buffer = io.BytesIO()
    # Labels come from a configuration: a dollar sign in them is no mathematics.
    with mpl.rc_context({"svg.hashsalt": "figures", "text.parse_math": False}):
        plot.save(
            buffer,
            format=file_format,
            dpi=RESOLUTION,
            verbose=False,
            limitsize=False,
            metadata=metadata,
        )
    return buffer.getvalue()
