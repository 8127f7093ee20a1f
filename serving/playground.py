"""The page at /: people ask about texts and tables, and see answers, what they come from, and what goes on now.

Everything is in one response, so that no replica with other code is asked for a part of it. It does not know the routes or the version:
its script asks `/v1/version`, `/v1/predict`, `/v1/explain` and `/metrics`, like any client.
"""

import base64
import hashlib
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).parent / "page"
# One after the other they are one script.
_PARTS = ("elements", "csv", "key", "requests", "explanation", "answers", "figures", "asking", "playground")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


_STYLE = _read("playground.css")
_SCRIPT = "\n".join(_read(f"{part}.js") for part in _PARTS)

PAGE = Template(_read("playground.html")).substitute(style=_STYLE, script=_SCRIPT)
ETAG = f'"{hashlib.sha256(PAGE.encode()).hexdigest()[:32]}"'
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src 'sha256-{_digest(_SCRIPT)}'",
        f"style-src 'sha256-{_digest(_STYLE)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become HTML or a script, whoever changes the page.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
# Kept by browsers, and asked for again only if it changed.
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-cache",
    "etag": ETAG,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
