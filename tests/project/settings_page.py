"""docs/settings.md, made from the settings' own classes and their docstrings.

python -m tests.project.settings_page
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cluster.settings import ClusterSettings, Section
from serving.settings import ServingSettings
from training.fit_settings import FitSettings, HeadSettings
from training.search_settings import Choices, Range
from training.settings import TrainingSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD = """# All settings

`ray_config.yaml` has three sections. What is left out has the default below; `--set training.tuning.num_samples=40` overrides any
of them, and `python -m training check` (or `cluster`, or `serving`) names every mistake. This page is made from the code:
`python -m tests.project.settings_page`.
"""
ROOTS: dict[str, type[Section]] = {"cluster": ClusterSettings, "training": TrainingSettings, "serving": ServingSettings}
# A dimension of the search is explained where its value is set.
_SAME: dict[str, type[Section]] = {"training.heads.NAME": HeadSettings, "training.fit": FitSettings}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, section in ROOTS.items():
        parts += [f"## {name}\n", *_tables(name, section)]
    return "\n".join(parts)


def _tables(path: str, section: type[Section]) -> Iterator[str]:
    told, below, rows = described(section), list[tuple[str, type[Section]]](), list[str]()
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner:
            below.append((f"{path}.{name}{'.NAME' if get_origin(field.annotation) is dict else ''}", inner))
        if not inner or told.get(name) or _default(field) == "null":
            what = told.get(name) or next((f"See `{where}.{name}`." for where, one in _SAME.items() if name in one.model_fields), "")
            default = "below" if inner and _default(field) == "{}" else _shown(_default(field))
            rows.append(f"| `{name}` | {default} | {', '.join(allowed(field))} | {what} |".replace("|  |", "| |").replace("|  |", "| |"))
    if rows:
        if "." in path:
            yield f"### {path}\n"
        yield f"{_summary(section)}\n"
        yield "\n".join(["| setting | default | allowed | |", "|---|---|---|---|", *rows, ""])
    for inner_path, inner_section in below:
        yield from _tables(inner_path, inner_section)


def described(section: type[Section]) -> dict[str, str]:
    """Read what docstrings say of each setting, those of the classes below it included."""
    found: dict[str, str] = {}
    for one in reversed([one for one in section.__mro__ if issubclass(one, Section)]):
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes):
            name, _, text = entry.strip().partition(": ")
            if text:
                found[name] = " ".join(text.split()).replace("|", "\\|")
    return found


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a setting holds: itself, one or none of it, or one for each name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inside = [section_in(one) for one in get_args(annotation) if one is not type(None)]
    own = {one for one in inside if one not in (None, Range, Choices)}
    return own.pop() if len(own) == 1 else None


def allowed(field: FieldInfo) -> list[str]:
    """Return what pydantic holds a value to, where that is a list of words or a bound."""
    parts = [f"`{word}`" for word in _words(field.annotation)]
    for rule in [*field.metadata, *_rules(field.annotation)]:
        parts += [f"{sign} {getattr(rule, name):,}" for name, sign in _BOUNDS.items() if getattr(rule, name, None) is not None]
    return parts


def _words(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (str(one) for one in get_args(annotation))
    elif get_origin(annotation) in (typing.Union, types.UnionType):
        for one in get_args(annotation):
            yield from _words(one)


def _rules(annotation: Any) -> Iterator[Any]:
    for one in getattr(annotation, "__metadata__", ()):
        yield from getattr(one, "metadata", [one])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        for one in get_args(annotation):
            yield from _rules(one)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _shown(default: str) -> str:
    return f"`{default}`" if default else "must be given"


def _summary(section: type[Section]) -> str:
    text = inspect.cleandoc(section.__doc__ or "").partition("Attributes:")[0]
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
