"""docs/settings.md is what the settings' classes say."""

from tests.project.settings_page import PAGE, page


def test_the_page_is_made_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make it again: python -m tests.project.settings_page"
