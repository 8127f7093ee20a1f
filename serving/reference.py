"""The page /docs: the OpenAPI document as plain HTML, readable without the internet.

Everything is in one response: no script, no font, no image from elsewhere. It does not know the routes; what it shows
stands in the document and in the facts of the version that answers.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from serving.messages import Answer, HeadAnswer, HeadFacts, Prediction, VersionFacts

_FOLDER = Path(__file__).parent / "page"
_STYLE = (_FOLDER / "reference.css").read_text(encoding="utf-8")
_PAGE = Template((_FOLDER / "reference.html").read_text(encoding="utf-8"))
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; img-src data:; frame-ancestors 'none'"

Tree = Mapping[str, Any]


def render(document: Tree, base_url: str, facts: VersionFacts | None) -> str:
    """Make the page.

    Args:
        document: An OpenAPI 3.1 document.
        base_url: Where the server is, for the curl lines.
        facts: Of the version that answers; None while there is none.
    """
    operations = [(tag["name"], *operation) for tag in document["tags"] for operation in _operations(document, tag["name"])]
    return _PAGE.substitute(
        title=escape(document["info"]["title"]),
        summary=escape(document["info"]["summary"]),
        style=_STYLE,
        links=_links(operations),
        served=_served(facts),
        operations="\n".join(_section(document, base_url, facts, path, method, operation) for _, path, method, operation in operations),
    )


def _operations(document: Tree, tag: str) -> Iterator[tuple[str, str, Tree]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation.get("tags", ()):
                yield path, method.upper(), operation


def _links(operations: list[tuple[str, str, str, Tree]]) -> str:
    lines, last = [], ""
    for tag, path, method, operation in operations:
        if tag != last:
            lines.append(f'<div class="group">{escape(tag)}</div>')
            last = tag
        lines.append(f'<a href="#{_anchor(method, path)}">{escape(operation["summary"])}</a>')
    return "\n".join(lines)


def _served(facts: VersionFacts | None) -> str:
    if facts is None:
        return '<div class="served"><h2>No version is loaded yet</h2></div>'
    heads = "\n".join(
        f'<div class="head"><b>{escape(head.name)}</b><span>{_chips(head.classes)}{_abstention(head)}</span></div>' for head in facts.heads
    )
    followed = f"follows “{facts.name}”" if facts.name else "fixed"
    limits = f"reads {facts.limits.max_tokens} tokens a text, {facts.limits.max_texts} texts a request"
    line = " · ".join([followed, f"{facts.engine}, {facts.dtype}, {facts.device}", limits])
    return f'<div class="served"><h2>Version {facts.version}</h2><p class="fact">{escape(line)}</p>{heads}</div>'


def _chips(names: list[str]) -> str:
    return "".join(f'<span class="chip">{escape(name)}</span>' for name in names)


def _abstention(head: HeadFacts) -> str:
    if head.threshold is None:
        return ""
    when = "always: no threshold reached its target" if head.threshold > 1 else f"below a probability of {head.threshold:g}"
    return f'<span class="fact">abstains {when}</span>'


def _section(document: Tree, base_url: str, facts: VersionFacts | None, path: str, method: str, operation: Tree) -> str:
    parts = [
        f'<section id="{_anchor(method, path)}">',
        f'<div class="operation"><span class="method {method}">{method}</span><code>{escape(path)}</code></div>',
        f"<h2>{escape(operation['summary'])}</h2>",
    ]
    if description := operation.get("description"):
        parts.append(f"<p>{_prose(description)}</p>")
    body = _resolved(document, _content_schema(operation.get("requestBody", {})))
    if body:
        parts += ["<h3>Request</h3>", _fields(document, body)]
    parts += ["<h3>Call</h3>", f"<pre>{escape(_curl(base_url, path, body))}</pre>"]
    parts += _answer(document, facts, operation["responses"].get("200", {}))
    errors = [(status, response) for status, response in operation["responses"].items() if status >= "400"]
    if errors:
        row = '<tr><td><code class="status">{}</code></td><td>{}</td></tr>'
        rows = "".join(row.format(status, _prose(response["description"])) for status, response in errors)
        parts += ["<h3>Errors, as application/problem+json</h3>", f"<table>{rows}</table>"]
    return "\n".join([*parts, "</section>"])


def _answer(document: Tree, facts: VersionFacts | None, response: Tree) -> list[str]:
    schema = _content_schema(response)
    fields = _resolved(document, schema)
    if not fields:
        return []
    parts = ["<h3>Answer</h3>", _fields(document, fields)]
    if schema.get("$ref", "").endswith("/Prediction") and facts is not None:
        parts += ["<h3>For example</h3>", f"<pre>{escape(_example(facts))}</pre>"]
    return parts


def _example(facts: VersionFacts) -> str:
    heads = {}
    for head in facts.heads:
        rest = round(0.2 / (len(head.classes) - 1), 3)
        scores = {name: rest if position else 0.8 for position, name in enumerate(head.classes)}
        abstained = None if head.threshold is None else head.threshold > 0.8
        heads[head.name] = HeadAnswer.model_construct(
            class_=None if abstained else head.classes[0], probability=0.8, scores=scores, abstained=abstained
        )
    prediction = Prediction(version=facts.version, answers=[Answer(heads=heads, tokens=112, truncated=False)])
    return json.dumps(prediction.model_dump(by_alias=True), indent=2, ensure_ascii=False)


def _curl(base_url: str, path: str, body: Tree) -> str:
    if not body:
        return f"curl {base_url}{path}"
    example = json.dumps(body["examples"][0], ensure_ascii=False)
    return f"curl {base_url}{path} \\\n  -H 'content-type: application/json' \\\n  -d '{example}'"


def _fields(document: Tree, schema: Tree) -> str:
    rows = [
        f'<tr><td><code>{escape(name)}</code></td><td class="type">{escape(kind)}</td><td>{_prose(description)}</td></tr>'
        for name, kind, description in _field_rows(document, schema, "")
    ]
    return f"<table>{''.join(rows)}</table>"


def _field_rows(document: Tree, schema: Tree, prefix: str) -> Iterator[tuple[str, str, str]]:
    """List an object's fields and those inside them, with paths like `answers[].tokens`."""
    for name, field in schema.get("properties", {}).items():
        kind, inner, inner_schema = _kind(document, field)
        is_optional = name not in schema.get("required", ()) and "default" not in field
        yield prefix + name, kind + (", optional" if is_optional else ""), field.get("description", "")
        yield from _field_rows(document, inner_schema, f"{prefix}{name}{inner}.")


def _kind(document: Tree, field: Tree) -> tuple[str, str, Tree]:
    """Name a field's type; and if there are fields inside, how their paths go on, and where they stand."""
    field = _resolved(document, field)
    if options := [option for option in field.get("anyOf", ()) if option.get("type") != "null"]:
        kind, inner, schema = _kind(document, options[0])
        return f"{kind} or null" if "null" in str(field["anyOf"]) else kind, inner, schema
    if field.get("type") == "array":
        kind, inner, schema = _kind(document, field["items"])
        plural = kind.replace("map to", "maps to", 1) if kind.startswith("map") else f"{kind}s"
        return f"list of {plural}", f"[]{inner}", schema
    if isinstance(values := field.get("additionalProperties"), Mapping):
        kind, inner, schema = _kind(document, values)
        return f"map to {kind}", f".*{inner}", schema
    return str(field.get("type", "anything")), "", field


def _prose(text: str) -> str:
    """Turn `code` in a description into the element."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _content_schema(holder: Tree) -> Tree:
    content = holder.get("content", {})
    schema: Tree = content.get("application/json", {}).get("schema", {})
    return schema


def _resolved(document: Tree, schema: Tree) -> Tree:
    if reference := schema.get("$ref"):
        found: Tree = document["components"]["schemas"][reference.rpartition("/")[2]]
        return found
    return schema


def _anchor(method: str, path: str) -> str:
    return escape(f"{method.lower()}{path.replace('/', '-')}")
