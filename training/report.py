"""The report of a search: one HTML page without scripts or outside files.

It knows the search's `result.json` and shows numbers, settings, classes and row counts, never texts. The page itself is
`page/report.html`, a Jinja template.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def write_report(record: Mapping[str, Any]) -> str:
    """Render a search's result as a page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    template = environment.from_string(files("training").joinpath("page/report.html").read_text(encoding="utf-8"))
    return template.render(
        **record,
        split="test" if "test" in record["metrics"] else "validation",
        ranked=sorted(record["trials"], key=lambda trial: -1.0 if trial["score"] is None else trial["score"], reverse=True),
        paths=sorted({path for trial in record["trials"] for path in trial["point"]}),
    )


def _figure(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"
    return str(value)
