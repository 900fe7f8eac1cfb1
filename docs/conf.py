"""The documentation site; `make docs` builds it and fails on any warning."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "GNNs on compressed activations"
author = "the authors named in CITATION.cff"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # readable without a network
    "sphinx_copybutton",
    "code_tables",
    "signature_comments",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_copyright = False
autodoc_member_order = "bysource"
napoleon_use_rtype = False  # our Returns sections are sentences
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
# Types of other projects, whose documentation is not fetched.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|torch_geometric|np|numpy|pd|pandas|xr|xarray|collections|pathlib|os)\b.*",
    ),
    (
        "py:.*",
        r"(Tensor|Loss|MakeOptimizer|StepMemory|Note|Row|Path|PathLike|Callable|Iterable|Mapping|FilePath|optional)",
    ),
    # Ours that are no public names.
    (
        "py:.*",
        r"pipeline_src\.(compression|gnn|graphs|laws|loading|quant|records|search|training)\..*",
    ),
]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
