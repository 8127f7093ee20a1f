"""The page at / where keys are asked for: it asks for one, keeps it to itself, and does not try again what was refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from cluster.storage import Storage
from serving.errors import ServingError
from serving.keys.key import Key
from serving.keys.ring import KeyRing
from serving.keys.store import KeyStore
from tests.e2e.conftest import PATIENCE_MS, pages_of
from tests.e2e.small_server import Served

pytestmark = pytest.mark.slow

WRONG = f"th_{'0' * 12}_{'w' * 43}"
TEXT = "the nurse and the driver"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return KeyStore(Storage(str(tmp_path_factory.mktemp("keys"))))


@pytest.fixture(scope="module")
def keys(store: KeyStore) -> dict[str, str]:
    """What a key may do → the key."""
    held = {}
    for scopes in (["predict"], ["read"], ["predict", "read"]):
        key, held["+".join(scopes)] = Key.make("page", frozenset[Any](scopes), None, None)
        store.add(key)
    return held


@pytest.fixture(scope="module")
def ring(store: KeyStore, keys: dict[str, str]) -> KeyRing:
    made = KeyRing(store)
    made.refresh()
    return made


@pytest.fixture(scope="module")
def served(ring: KeyRing, tmp_path_factory: pytest.TempPathFactory, write_checkpoint_in: Callable[[Path], Path]) -> Iterator[Served]:
    started = Served(write_checkpoint_in(tmp_path_factory.mktemp("guarded") / "checkpoint"), ring)
    yield started
    started.stop()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with pages_of(browser, served.url, "401|403|429") as make_page:
        page = make_page()
        page.clock.install()
        page.goto(served.url)
        expect(page.locator("#served")).to_have_text("A key is needed.", timeout=PATIENCE_MS)
        yield page


def give(page: Page, key: str) -> None:
    page.get_by_label("This server wants a key").fill(key)
    page.keyboard.press("Enter")


def test_it_asks_for_a_key_and_once_alone(page: Page, served: Served) -> None:
    expect(page.locator("#key-asked")).to_be_visible()
    expect(page.locator("#figures-note")).to_have_text("No new figures: The request has no key.")
    # Nothing is known, not even that there is no version; and a link takes no key along.
    expect(page.locator("#facts")).to_have_text("")
    expect(page.get_by_role("link", name="API")).to_be_hidden()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(60_000)
    # What is asked is told of in its order.
    page.evaluate("() => fetch('health/live')")
    assert [url.removeprefix(served.url) for url in asked] == ["/health/live"]


def test_a_key_that_is_not_good_is_told_of_and_the_next_one_opens(page: Page, keys: dict[str, str]) -> None:
    wrong = page.locator("#key-problem")
    give(page, "no key, but wörds")
    expect(wrong).to_have_text("That is no key: letters, digits, _ and - are all that one has.")
    give(page, WRONG)
    expect(wrong).to_have_text("The key is not good: wrong, expired or revoked.")
    give(page, keys["predict"])
    expect(wrong).to_contain_text("is not for this: it wants the scope 'read'.")
    give(page, keys["predict+read"])
    expect(page.locator("#served")).to_have_text("version 3 · float32", timeout=PATIENCE_MS)
    expect(page.locator("#key-asked")).to_be_hidden()
    expect(page.locator("#lines")).to_be_focused()
    page.locator("#lines").fill(TEXT)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#status")).to_contain_text("1 text answered by version 3", timeout=PATIENCE_MS)
    page.get_by_role("button", name="Which words?").click()
    expect(page.locator(".passage")).to_have_text(TEXT)


def test_a_key_that_may_only_read_is_asked_for_another_when_texts_come(page: Page, keys: dict[str, str]) -> None:
    give(page, keys["read"])
    expect(page.locator("#key-asked")).to_be_hidden()
    page.locator("#lines").fill(TEXT)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#key-problem")).to_contain_text("is not for this: it wants the scope 'predict'.")
    expect(page.locator("#problem")).to_contain_text("Give another key above, and go on.")
    expect(page.locator("#status")).to_have_text("Stopped. 0 texts answered. 1 text left.")
    # Figures go on, and do not take away what is being typed.
    page.get_by_label("This server wants a key").fill(keys["predict+read"])
    with page.expect_response("**/v1/version"):
        page.clock.run_for(2_000)
    page.clock.run_for(2_000)
    expect(page.get_by_label("This server wants a key")).to_have_value(keys["predict+read"])
    page.keyboard.press("Enter")
    expect(page.locator("#key-asked")).to_be_hidden()
    page.get_by_role("button", name="Go on with the rest").click()
    expect(page.locator("#status")).to_contain_text("1 text answered by version 3", timeout=PATIENCE_MS)


def test_a_key_that_is_revoked_is_told_of_and_one_that_is_good_again_goes_on(
    page: Page, keys: dict[str, str], ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(page, keys["predict+read"])
    expect(page.locator("#facts dt").first).to_have_text("Version", timeout=PATIENCE_MS)
    known = ring._keys
    monkeypatch.setattr(ring, "_keys", {})
    page.clock.run_for(2_000)
    expect(page.locator("#key-problem")).to_have_text("The key is not good: wrong, expired or revoked.")
    expect(page.locator("#facts")).to_have_text("")
    # Replicas hear of a key one after the other.
    monkeypatch.setattr(ring, "_keys", known)
    page.clock.run_for(4_000)
    expect(page.locator("#key-asked")).to_be_hidden()
    expect(page.locator("#facts dt").first).to_have_text("Version")


def test_where_many_wrong_keys_came_from_here_it_still_asks_for_one(
    page: Page, keys: dict[str, str], ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = ring._clock()
    monkeypatch.setattr(ring, "_clock", lambda: now)
    # Of one address no more are told apart, as long as the clock stands still.
    for _ in range(50):
        with pytest.raises(ServingError):
            ring.admit(WRONG, "read", "127.0.0.1")
    page.reload()
    expect(page.locator("#key-asked")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#figures-note")).to_have_text("No new figures: Too many requests without a good key.")
    expect(page.locator("#facts")).to_have_text("")
    give(page, keys["predict+read"])
    expect(page.locator("#served")).to_have_text("version 3 · float32", timeout=PATIENCE_MS)
    expect(page.locator("#key-asked")).to_be_hidden()


def test_the_key_is_kept_nowhere(page: Page, keys: dict[str, str]) -> None:
    key = page.get_by_label("This server wants a key")
    expect(key).to_have_accessible_description("One that may predict and read. This page does not keep it: it is gone when you leave.")
    key.fill("typed, and not given")
    page.evaluate("() => window.dispatchEvent(new Event('pagehide'))")
    expect(key).to_have_value("")
    give(page, keys["predict+read"])
    expect(page.locator("#key-asked")).to_be_hidden()
    expect(key).to_have_value("")
    kept = page.evaluate("async () => [localStorage.length, sessionStorage.length, document.cookie, (await indexedDB.databases()).length]")
    assert kept == [0, 0, "", 0]
    page.evaluate("() => window.dispatchEvent(new Event('pagehide'))")
    page.clock.run_for(2_000)
    expect(page.locator("#key-asked")).to_be_visible()
    page.reload()
    expect(page.locator("#served")).to_have_text("A key is needed.", timeout=PATIENCE_MS)
    expect(key).to_have_value("")
