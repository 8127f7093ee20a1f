"""The page at / in a real browser: what it shows is what the API answers, and it can be used without a mouse, in the dark, on a phone."""

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from serving.messages import Failure
from tests.e2e.small_server import Served

pytestmark = pytest.mark.slow

PATIENCE_MS = 60_000
# What stood beside and below the button, each time anything on the page changed.
SHOWN = """() => {
  const told = [], words = (id) => document.getElementById(id).textContent;
  const note = () => told.push([words("count"), words("status")]);
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
  return told;
}"""
# A busy server whose answer never ends.
STALLS = """() => {
  const asked = window.fetch;
  const begun = (signal) => new ReadableStream({
    start: (answer) => signal.addEventListener("abort", () => answer.error(signal.reason)),
    pull: () => { window.reading = true; },
  }, { highWaterMark: 0 });
  const headers = { "content-type": "application/problem+json", "retry-after": "1" };
  window.fetch = async (path, options) =>
    path === "v1/predict" ? new Response(begun(options.signal), { status: 503, headers }) : asked(path, options);
}"""
TEXTS = ["the nurse and the 🏥 driver", "sales teacher in a school"]


def ask(page: Page, texts: list[str]) -> None:
    page.locator("#lines").fill("\n".join(texts))
    page.get_by_role("button", name="Ask").click()
    ended(page)


def ended(page: Page) -> None:
    expect(page.locator("#cancel")).to_be_hidden(timeout=PATIENCE_MS)


def scores(card: Locator) -> dict[str, dict[str, float]]:
    """What a card shows: head → class → probability, of all classes."""
    for button in card.get_by_role("button", name="classes").all():
        button.click()
    told = {}
    for head in card.locator(".head").all():
        rows = head.locator(".classes li").all()
        told[head.locator("h3").inner_text().lower()] = {
            row.locator(".class").inner_text(): float(row.locator("data").get_attribute("value") or "nan") for row in rows
        }
    return told


def expected(answer: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {head: told["scores"] for head, told in answer["heads"].items()}


def test_two_texts_show_what_the_api_answers(page: Page, served: Served) -> None:
    ask(page, TEXTS)
    answers = served.ask("/v1/predict", {"texts": TEXTS})["answers"]
    cards = page.locator(".card")
    expect(cards).to_have_count(2)
    for card, answer, text in zip(cards.all(), answers, TEXTS, strict=True):
        assert card.locator(".text").inner_text() == text
        assert scores(card) == expected(answer)
        assert answer["heads"]["category"]["abstained"]
        expect(card.locator(".unsure")).to_have_text("not sure: below .900")
        assert card.locator(".named .class").inner_text() == answer["heads"]["education"]["class"]
        # All classes of an ordered head stand in their order, those of others by their probability.
        assert card.locator(".classes").nth(1).locator(".class").all_inner_texts() == list(answer["heads"]["education"]["scores"])
        shares = [float(one.get_attribute("value") or "nan") for one in card.locator(".classes").nth(0).locator("data").all()]
        assert shares == sorted(shares, reverse=True)
    expect(page.locator("#status")).to_have_text("2 texts answered by version 3, 2 with a head that is not sure.")
    assert re.search(r"queue .* · tokenise .* · compute .* · batch of 2 texts, \d+ tokens", page.locator("#spent").inner_text())


def test_a_table_is_joined_as_the_version_learned_and_comes_back_with_answers(page: Page, served: Served, tmp_path: Path) -> None:
    rows = [
        ["the nurse", 'a "school", and\na driver', "1"],
        *([f"driver {letter}", "sales; the master", str(number)] for number, letter in enumerate("abcdef")),
    ]
    with (tmp_path / "table.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["title", "text", "id"], *rows])
    page.get_by_label("A CSV file", exact=True).check()
    page.locator("#file").set_input_files(tmp_path / "table.csv")
    expect(page.locator("#column option:checked")).to_have_text("title and text, joined as the version learned them")
    expect(page.locator("#count")).to_have_text("7 texts")
    page.get_by_role("button", name="Ask").click()
    ended(page)
    # At most three texts a request.
    expect(page.locator("#spent")).to_contain_text("3 requests, together")
    examples = [{"title": title, "text": text} for title, text, _ in rows]
    answers = [served.ask("/v1/predict", {"examples": [example]})["answers"][0] for example in examples]
    cards = page.locator(".card").all()
    assert cards[0].locator(".text").inner_text() == 'the nurse: a "school", and\na driver'
    for card, answer in zip(cards, answers, strict=True):
        assert scores(card)["education"] == pytest.approx(expected(answer)["education"], abs=2e-6)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as file:
        told = list(csv.DictReader(file))
    assert [[row["title"], row["text"], row["id"]] for row in told] == rows
    assert [row["answer.education"] for row in told] == [answer["heads"]["education"]["class"] for answer in answers]
    assert {(row["answer.category"], row["answer.category.abstained"], row["answer.version"]) for row in told} == {("", "true", "3")}


def test_a_table_can_be_dropped(page: Page) -> None:
    drop = """() => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File(["note\\nnurse\\ndriver\\n"], "dropped.csv"));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop)
    expect(page.locator("#file-found")).to_have_text("dropped.csv: 3 rows of 1 column.")
    page.get_by_role("button", name="Ask").click()
    ended(page)
    assert page.locator(".card .text").all_inner_texts() == ["nurse", "driver"]


def test_a_column_can_be_chosen_and_a_broken_table_is_told(page: Page, served: Served) -> None:
    page.get_by_label("A CSV file", exact=True).check()
    page.locator("#file").set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b'a;b\n1;"open\n'})
    expect(page.locator("#file-found")).to_have_text("a.csv: Line 2: a quote is opened and not closed before the end of its field.")
    page.locator("#file").set_input_files({"name": "b.csv", "mimeType": "text/csv", "buffer": "ort;beruf\nKöln;Fahrer\n".encode("cp1252")})
    page.locator("#column").select_option(label="beruf")
    expect(page.locator("#first")).to_have_text("Fahrer")
    page.locator("#column").select_option(label="ort")
    expect(page.locator("#first")).to_have_text("Köln")
    page.get_by_role("button", name="Ask").click()
    ended(page)
    (answer,) = served.ask("/v1/predict", {"texts": ["Köln"]})["answers"]
    assert scores(page.locator(".card")) == expected(answer)


def test_a_text_that_is_refused_does_not_take_the_others_along(page: Page, served: Served) -> None:
    too_long = "driver " * 60
    ask(page, [TEXTS[0], too_long, TEXTS[1], "a " * 150])
    cards = page.locator(".card").all()
    expect(cards[1].locator(".problem")).to_have_text("No answer: The text is longer than 400 characters.")
    expect(cards[3].locator(".cut")).to_have_text("read 64 of its tokens; the rest was cut")
    assert [len(scores(card)) for card in cards] == [2, 0, 2, 2]
    (alone,) = served.ask("/v1/predict", {"texts": [TEXTS[1]]})["answers"]
    assert scores(cards[2])["category"] == pytest.approx(expected(alone)["category"], abs=2e-6)


def test_what_looks_like_html_is_text(page: Page) -> None:
    page.get_by_label("One text", exact=True).check()
    text = "<img src=x onerror=alert(1)>\n<b>nurse</b> & <script>alert(2)</script>"
    page.locator("#whole").fill(text)
    page.get_by_role("button", name="Ask").click()
    ended(page)
    assert page.locator(".card .text").inner_text() == text
    page.get_by_role("button", name="Which words?").click()
    expect(page.locator(".passage")).to_have_text(text)
    assert page.locator("img, .text *, .passage :not(mark)").count() == 0


def test_an_explanation_shades_the_words_it_is_about(page: Page, served: Served) -> None:
    ask(page, TEXTS[:1])
    told = served.ask("/v1/explain", {"text": TEXTS[0]})
    page.get_by_role("button", name="Which words?").click()
    words = [TEXTS[0][span["begin"] : span["end"]] for span in told["spans"]]
    for head in ("education", "category"):
        page.locator(".explanation").get_by_label(head, exact=True).check()
        marks = page.locator(".passage mark")
        assert marks.all_inner_texts() == words
        for mark, weight in zip(marks.all(), told["heads"][head]["weights"], strict=True):
            assert float((mark.get_attribute("title") or "").replace("−", "-")) == pytest.approx(weight, abs=6e-4)
            assert mark.get_attribute("class") == ("against" if weight < 0 else "for")
    assert page.locator(".passage").inner_text() == TEXTS[0]


def test_a_busy_server_is_asked_again_and_asking_can_be_cancelled(page: Page, served: Served) -> None:
    served.answerer.refusals = 1
    ask(page, TEXTS)
    expect(page.locator(".card")).to_have_count(2)
    served.answerer.refusals = 1_000_000
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#count")).to_have_text("asking again in 1 s")
    expect(page.locator("#status")).to_contain_text("9.0 s of work come before this request")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped. 0 texts answered. 2 texts left.")
    served.answerer.refusals = 0
    page.get_by_role("button", name="Go on with the rest").click()
    ended(page)
    expect(page.locator(".card")).to_have_count(2)


def test_cancel_is_heard_while_a_busy_servers_answer_is_read(page: Page) -> None:
    page.evaluate(STALLS)
    page.locator("#lines").fill("\n".join(TEXTS))
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("() => window.reading")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Stopped. 0 texts answered. 2 texts left.")


def test_a_key_that_asks_too_often_waits_as_long_as_it_is_told(page: Page) -> None:
    often = {"title": "too many requests", "status": 429, "detail": "the key may ask 1 times a second", "request_id": "a1b2"}
    asked: list[int] = []
    times: list[float] = []

    def answer(route: Route) -> None:
        asked.append(len(route.request.post_data_json["texts"]))
        times.append(time.monotonic())
        if len(asked) == 1:
            route.fulfill(status=429, content_type="application/problem+json", headers={"retry-after": "3"}, body=json.dumps(often))
        else:
            route.continue_()

    page.route("**/v1/predict", answer)
    page.locator("#lines").fill("\n".join(TEXTS))
    # It stands there for three seconds, in which a busy machine may not look.
    shown = page.evaluate_handle(SHOWN)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".card")).to_have_count(2)
    ended(page)
    assert any(count == "asking again in 3 s" and "The key may ask 1 times a second" in status for count, status in shown.json_value())
    # It is requests that are counted: more of them with fewer texts would take longer.
    assert asked == [2, 2]
    assert times[1] - times[0] >= 3.0


def test_ordered_classes_that_are_numbers_are_shown_in_their_order(page: Page) -> None:
    def rename(route: Route) -> None:
        body = route.fetch().text().replace('"school"', '"2"').replace('"master"', '"1"')
        route.fulfill(content_type="application/json", body=body)

    page.route(re.compile(r"/v1/(version|predict)$"), rename)
    page.reload()
    expect(page.locator("#served")).to_have_text("version 3 · float32", timeout=PATIENCE_MS)
    ask(page, TEXTS[:1])
    head = page.locator(".head").filter(has_text="education")
    head.get_by_role("button", name="classes").click()
    expect(head.locator(".classes .class")).to_have_text(["none", "2", "1", "phd"])


def test_what_comes_too_late_is_asked_about_by_halves_and_then_told(page: Page) -> None:
    late = {"title": "deadline exceeded", "status": 504, "detail": "the deadline passed", "request_id": "a1b2"}
    most = 1

    def answer(route: Route) -> None:
        if len(route.request.post_data_json["texts"]) > most:
            route.fulfill(status=504, content_type="application/problem+json", body=json.dumps(late))
        else:
            route.continue_()

    page.route("**/v1/predict", answer)
    ask(page, [*TEXTS, "nurse"])
    expect(page.locator(".card")).to_have_count(3)
    most = 0
    page.get_by_role("button", name="Ask").click()
    words = "Deadline exceeded. The deadline passed.Ask about fewer or shorter texts, or when less is going on.Request a1b2"
    expect(page.get_by_role("alert")).to_have_text(words)
    expect(page.locator("#status")).to_have_text("Stopped. 0 texts answered. 3 texts left.")


def test_what_goes_on_is_shown(page: Page, served: Served) -> None:
    facts = page.locator("#facts")
    for name, value in {"Version": "3", "Follows": "production", "Precision": "float32", "Replicas": "2", "Texts waiting": "1,235"}.items():
        expect(facts.locator(f'dt:text-is("{name}") + dd')).to_have_text(value)
    served.follower.last_failure = Failure(version=4, reason="weights.safetensors is torn", at="2026-01-02T03:04:05+00:00")
    expect(page.locator("#failure")).to_contain_text("Version 4 could not be loaded.", timeout=PATIENCE_MS)
    expect(page.locator("#failure")).to_contain_text("version 3 goes on")
    served.follower.last_failure = None
    expect(page.locator("#failure")).to_be_hidden(timeout=PATIENCE_MS)


def focus_on(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus, and see that it can be seen."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            seen = "element => getComputedStyle(element.matches('.choice input') ? element.nextElementSibling : element).outline"
            assert target.evaluate(seen).endswith("solid 2px")
            return
    pytest.fail(f"Tab never comes to {target}")


def test_a_keyboard_is_enough(page: Page) -> None:
    focus_on(page, page.get_by_role("link", name="To the answers"))
    focus_on(page, page.get_by_label("Texts, one a line", exact=True))
    page.keyboard.press("ArrowRight")
    expect(page.locator("#whole")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    focus_on(page, page.locator("#lines"))
    page.keyboard.type(TEXTS[0])
    focus_on(page, page.get_by_role("button", name="Ask"))
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("1 text answered")
    expect(page.get_by_role("button", name="Ask")).to_be_focused()
    focus_on(page, page.get_by_role("button", name="Download as CSV"))
    focus_on(page, page.get_by_role("button", name="All 4 classes"))
    page.keyboard.press("Enter")
    expect(page.locator(".classes").nth(1).locator("li")).to_have_count(4)
    focus_on(page, page.get_by_role("button", name="Which words?"))
    page.keyboard.press("Space")
    expect(page.locator(".passage")).to_be_visible()
    focus_on(page, page.locator(".explanation").get_by_label("category", exact=True))
    page.keyboard.press("ArrowRight")
    expect(page.locator(".explanation").get_by_label("education", exact=True)).to_be_checked()


# All texts that can be seen, with the contrast to what is painted below them.
CONTRASTS = """() => {
  const read = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((part, place) => part * a + under[place] * (1 - a));
  const light = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const below = (element) => (element
    ? over(read(getComputedStyle(element).backgroundColor), below(element.parentElement))
    : [255, 255, 255]);
  return [...document.querySelectorAll("body *")]
    .filter((element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((element) => {
      const paper = below(element);
      const [one, other] = [over(read(getComputedStyle(element).color), paper), paper].map(luminance).sort((a, b) => a - b);
      return [element.textContent.slice(0, 40), (other + 0.05) / (one + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(
    open_page: Callable[..., Page], served: Served, scheme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, reduced_motion="reduce")
    failure = Failure(version=4, reason="x" * 200, at="2026-01-02T03:04:05+00:00")
    # To the end, as the page asks again meanwhile.
    monkeypatch.setattr(served.follower, "last_failure", failure)
    fits = "() => document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    ask(page, [*TEXTS, "x" * 390, "a " * 150, "y" * 401])
    page.get_by_role("button", name="Which words?").nth(3).click()
    expect(page.locator(".unread")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_label("A CSV file", exact=True).check()
    page.locator("#file").set_input_files(
        {"name": f"{'z' * 90}.csv", "mimeType": "text/csv", "buffer": f"{'n' * 90},b\n{'t' * 90},c\n".encode()}
    )
    expect(page.locator("#table")).to_be_visible()
    expect(page.locator("#failure")).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate(fits)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 60
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
    (red, *_) = map(int, re.findall(r"\d+", page.evaluate("() => getComputedStyle(document.body).backgroundColor")))
    assert (red < 64) == (scheme == "dark")
