import base64
import hashlib
import re

from serving.playground import CONTENT_SECURITY_POLICY, ETAG, HEADERS, PAGE


def digest_of(element: str) -> str:
    (content,) = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", PAGE, flags=re.DOTALL)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def test_nothing_but_its_own_script_and_style_runs() -> None:
    assert f"script-src 'sha256-{digest_of('script')}';" in CONTENT_SECURITY_POLICY
    assert f"style-src 'sha256-{digest_of('style')}';" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert HEADERS["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_it_needs_nothing_from_elsewhere_and_keeps_nothing() -> None:
    for word in ("http://", "https://", "@import", "url(", "innerHTML", "insertAdjacentHTML", "localStorage", "sessionStorage", "cookie"):
        assert word not in PAGE
    assert '<a href="docs">' in PAGE
    # What the parts of the page look for is in it.
    for name in set(re.findall(r'find\("([\w-]+)"\)', PAGE)):
        assert f'id="{name}"' in PAGE


def test_its_tag_is_that_of_its_content() -> None:
    assert hashlib.sha256(PAGE.encode()).hexdigest().startswith(ETAG.strip('"'))
