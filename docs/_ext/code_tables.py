"""Directives for tables out of the code: configuration keys, variables of records."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pipeline_src.configuration.checks import read_schema
from pipeline_src.configuration.schemas import describe_keys
from pipeline_src.records import datasets

SCHEMA = Path(__file__).resolve().parents[2] / "workflow/schemas/config.schema.yaml"


class KeyTable(SphinxDirective):
    """The keys of the configuration, one row each."""

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown table in place."""
        return self.parse_text_to_nodes(describe_keys(read_schema(SCHEMA)))


class RecordVariables(SphinxDirective):
    """Variables of a kind of record, by the names of the tables that define them."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """One row for each variable."""
        rows = ["| variable | unit | meaning |", "|---|---|---|"]
        for table in self.arguments:
            for name, (unit, meaning) in getattr(datasets, table).items():
                rows.append(f"| `{name}` | {unit} | {meaning} |")
        return self.parse_text_to_nodes("\n".join(rows) + "\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("key-table", KeyTable)
    app.add_directive("record-variables", RecordVariables)
    return {"parallel_read_safe": True}
