"""The composed job ads: reproducible, balanced enough, without duplicates, and no single word gives a class away."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from training.data.sample import COLUMNS, EDUCATIONS, compose_ads, write_sample
from training.errors import DataError

ADS = compose_ads(600, seed=7)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        write_sample(tmp_path / name, 60, seed)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_the_table_is_plain_csv_and_the_summary_counts_it(tmp_path: Path) -> None:
    summary = write_sample(tmp_path / "ads.csv", 200, 3)
    with (tmp_path / "ads.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert (len(rows), summary.rows) == (200, 200)
    assert summary.missing["education"] == sum(not row["education"] for row in rows) == 30
    assert summary.languages == dict(Counter(row["language"] for row in rows))
    assert b"\r" not in (tmp_path / "ads.csv").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["ads.csv"]


def test_classes_are_all_there_in_both_languages() -> None:
    assert len({ad["category"] for ad in ADS}) >= 8
    for language in ("en", "de"):
        ads = [ad for ad in ADS if ad["language"] == language]
        assert {ad["education"] for ad in ads} == {"", *EDUCATIONS}
        assert len({ad["category"] for ad in ads}) == len({ad["category"] for ad in ADS})
    categories = Counter(ad["category"] for ad in ADS)
    educations = Counter(ad["education"] for ad in ADS if ad["education"])
    assert min(categories.values()) >= 0.04 * 600
    assert min(educations.values()) >= 0.08 * 600


def test_the_category_does_not_tell_the_education() -> None:
    levels = defaultdict(set)
    for ad in ADS:
        if ad["education"]:
            levels[ad["category"]].add(ad["education"])
    assert sum(len(found) >= 3 for found in levels.values()) > len(levels) / 2


def test_no_text_stands_twice() -> None:
    ads = compose_ads(3000, seed=1)
    assert len({ad["text"] for ad in ads}) == 3000


def test_ads_have_the_length_of_short_ads() -> None:
    lengths = sorted(len(ad["text"].split()) for ad in ADS)
    assert lengths[30] >= 40
    assert lengths[-30] <= 150
    assert lengths[-30] > 1.5 * lengths[30]


@pytest.mark.parametrize("head", ["category", "education"])
def test_no_single_word_gives_a_class_away(head: str) -> None:
    ads = [ad for ad in ADS if ad[head]]
    sizes = Counter(ad[head] for ad in ads)
    containing: dict[str, Counter[str]] = defaultdict(Counter)
    for ad in ads:
        for word in set(re.findall(r"\w+", f"{ad['title']} {ad['text']}".lower())):
            containing[word][ad[head]] += 1
    for word, counts in containing.items():
        name, hits = counts.most_common(1)[0]
        assert not (hits / counts.total() > 0.98 and hits / sizes[name] > 0.6), (word, name)


def test_a_table_of_somebody_elses_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "ads.csv"
    out.write_text("title,text\nmine,mine\n", encoding="utf-8")
    with pytest.raises(DataError, match="is there already, and holds something else"):
        write_sample(out, 60, 7)
    assert out.read_text(encoding="utf-8") == "title,text\nmine,mine\n"
    assert [file.name for file in tmp_path.iterdir()] == ["ads.csv"]
    write_sample(out, 60, 7, overwrite=True)
    write_sample(out, 60, 7)
    write_sample(tmp_path / "again.csv", 60, 7)
    assert out.read_bytes() == (tmp_path / "again.csv").read_bytes()


def test_no_placeholder_is_left_in_an_ad() -> None:
    assert not [ad for ad in ADS if re.search(r"[{}<>]|\s{2,}| [.,;]", ad["text"].replace("\n", " "))]


@pytest.mark.parametrize(
    ("out", "rows", "message"),
    [("ads.csv", 19, "--rows is 19, but must be at least 20"), ("nowhere/ads.csv", 60, "does not exist"), (".", 60, "is a folder")],
)
def test_what_cannot_be_written_is_said(out: str, rows: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_sample(tmp_path / out, rows, 7)


def test_when_no_new_text_is_found_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.sample._Writer.compose", lambda _: ("title", "the same text"))
    with pytest.raises(DataError, match="only 1 different texts were composed"):
        compose_ads(60, seed=1)
