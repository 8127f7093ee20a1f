"""Composes a table of job ads in English and German, for trying things out without data of one's own.

The ads are made from facts about occupations (folder `sample_facts`): what their titles and duties are and which education
they ask for, worded in many ways and surrounded by what real ads are full of. It does not know models or settings, and
makes no claim about real labour markets.
"""

import csv
import filecmp
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from cluster.settings import parse_yaml
from training.errors import DataError

COLUMNS = ("title", "text", "category", "education", "language")
EDUCATIONS = ("none", "school", "vocational", "bachelor", "master")
MIN_ROWS = 20
GERMAN_FRACTION = 0.4
MISSING_FRACTION = 0.15
# Shares of the ads that name no occupation, and that say outright which education they want.
NEUTRAL_FRACTION = 0.12
STATED_FRACTION = 0.75
FIELD_FRACTION = 0.8
TARGET_WORDS = (45, 125)
ATTEMPTS_PER_ROW = 50

ItemT = TypeVar("ItemT")


class _Category(TypedDict):
    share: int
    levels: dict[str, int]
    neighbours: list[str]


class _Occupation(TypedDict):
    titles: dict[str, list[str]]
    duties: list[str]


class _Occupations(TypedDict):
    fields: list[str]
    simple: list[str]
    skilled: list[str]
    occupations: list[_Occupation]


class _Level(TypedDict):
    stated: list[str]
    duties: list[str]


class _Wording(TypedDict):
    conjunction: str
    companies: dict[str, list[str]]
    places: list[str]
    industries: list[str]
    blurbs: list[str]
    titles: list[str]
    neutral_titles: list[str]
    openings: list[str]
    neutral_openings: list[str]
    duty_frames: list[str]
    field_frames: list[str]
    colleague_frames: list[str]
    qualities: list[str]
    distractors: dict[str, list[str]]
    benefits: list[str]
    hours: list[str]
    applications: list[str]
    levels: dict[str, _Level]


@dataclass(frozen=True)
class SampleSummary:
    """What a composed table holds.

    Attributes:
        rows: Number of ads.
        classes: Ads of each class, by head.
        missing: Ads without a label, by head.
        languages: Ads in each language.
    """

    rows: int
    classes: dict[str, dict[str, int]]
    missing: dict[str, int]
    languages: dict[str, int]


@dataclass(frozen=True)
class _Cell:
    """What is decided of an ad before a word is written."""

    category: str
    education: str
    language: str

    @property
    def skill(self) -> str:
        return "simple" if self.education in ("none", "school") else "skilled"


class _Dice:
    """Chance from `random()` alone: Python promises that its stream never changes, and does not for `choice` or `shuffle`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def fraction(self) -> float:
        return self._random.random()

    def below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, items: Sequence[ItemT]) -> ItemT:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[ItemT]) -> list[ItemT]:
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed


def write_sample(out: Path, rows: int, seed: int, *, overwrite: bool = False) -> SampleSummary:
    """Write `rows` composed ads as a CSV file; the same rows and seed give the same bytes everywhere.

    Raises:
        DataError: Too few or too many rows, or the file cannot be written, or it holds something else and `overwrite` is not given.
    """
    if not out.parent.is_dir():
        raise DataError(f"{out}: the folder {out.parent} does not exist", "make the folder first, or name another file with --out")
    if out.is_dir():
        raise DataError(f"{out}: is a folder, but must be a file", "name a file with --out, like ads.csv")
    ads = compose_ads(rows, seed)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(ads)
        # `ads.csv` is what a table of one's own is called as well.
        if out.exists() and not overwrite and not filecmp.cmp(out, unfinished, shallow=False):
            raise DataError(f"{out}: is there already, and holds something else", "name another file with --out, or give --overwrite")
        unfinished.replace(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}", "check the folder's permissions and free space") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return _summarise(ads)


def compose_ads(rows: int, seed: int) -> list[dict[str, str]]:
    """Compose ads with the columns `title`, `text`, `category`, `education` (empty: label missing) and `language`.

    Raises:
        DataError: Fewer rows than `MIN_ROWS`, or more than there are different texts.
    """
    if rows < MIN_ROWS:
        raise DataError(f"--rows is {rows}, but must be at least {MIN_ROWS}", "600 rows make a useful table")
    dice = _Dice(seed)
    cells = dice.shuffled(list(_cells(rows, dice)))
    unlabelled = set(dice.shuffled(range(rows))[: round(rows * MISSING_FRACTION)])
    texts: set[str] = set()
    ads = []
    for row, cell in enumerate(cells):
        title, text = _compose_new(cell, dice, texts)
        education = "" if row in unlabelled else cell.education
        ads.append(dict(zip(COLUMNS, (title, text, cell.category, education, cell.language), strict=True)))
    return ads


def _cells(rows: int, dice: _Dice) -> Iterator[_Cell]:
    # Systematic sampling: rows points at equal distances over all shares laid end to end, so that every share is met
    # within one ad, whatever the seed. German ads are spread the same way.
    weights = [
        ((category, education), facts["share"] * weight / sum(facts["levels"].values()))
        for category, facts in _categories().items()
        for education, weight in facts["levels"].items()
    ]
    total = sum(weight for _, weight in weights)
    offset, shift = dice.fraction(), dice.fraction()
    position, passed = 0, 0.0
    for (category, education), weight in weights:
        passed += weight * rows / total
        while position < rows and (position + offset < passed or (category, education) == weights[-1][0]):
            german = int((position + 1) * GERMAN_FRACTION + shift) > int(position * GERMAN_FRACTION + shift)
            yield _Cell(category, education, "de" if german else "en")
            position += 1


def _compose_new(cell: _Cell, dice: _Dice, texts: set[str]) -> tuple[str, str]:
    for _ in range(ATTEMPTS_PER_ROW):
        title, text = _Writer(cell, dice).compose()
        if text not in texts:
            texts.add(text)
            return title, text
    raise DataError(
        f"only {len(texts)} different texts were composed: category {cell.category!r} with education {cell.education!r} "
        f"gave no new one in {ATTEMPTS_PER_ROW} attempts",
        "ask for fewer --rows",
    )


class _Writer:
    """Words one ad."""

    def __init__(self, cell: _Cell, dice: _Dice) -> None:
        self._cell = cell
        self._dice = dice
        self._wording = _wording(cell.language)
        self._category = _occupations(cell.language)[cell.category]
        self._occupation = dice.pick([item for item in self._category["occupations"] if cell.education in item["titles"]])
        self._neutral = dice.chance(NEUTRAL_FRACTION)
        self._stated = dice.chance(STATED_FRACTION)
        self._form = dice.below(2)
        self._words = self._ad_words()

    def compose(self) -> tuple[str, str]:
        """Return title and text."""
        wording, pick = self._wording, self._dice.pick
        title = self._say(pick(wording["neutral_titles" if self._neutral else "titles"]))
        opening = self._say(pick(wording["neutral_openings" if self._neutral else "openings"]))
        return title, " ".join([opening, *self._body(len(opening.split()))])

    def _body(self, words: int) -> list[str]:
        # Duties and the wanted education come always, the rest in random order until the ad is long enough.
        parts = {"duties": self._duties()}
        if self._stated:
            parts["education"] = self._say(self._dice.pick(self._wording["levels"][self._cell.education]["stated"]))
        if self._dice.chance(FIELD_FRACTION):
            field = self._dice.pick(self._category["fields"])
            parts["field"] = self._say(self._dice.pick(self._wording["field_frames"]), field=field)
        target = min(self._dice.between(*TARGET_WORDS) for _ in range(2))
        words += sum(len(part.split()) for part in parts.values())
        for name, sentence in self._dice.shuffled(list(self._extras().items())):
            if words < target:
                parts[name] = sentence
                words += len(sentence.split())
        middle = self._dice.shuffled([["duties", "colleagues"], ["education", "field", "quality", "second quality"], ["distractor"]])
        order = ["blurb", *(name for block in middle for name in block), "benefit", "second benefit", "hours", "application"]
        return [parts[name] for name in order if name in parts]

    def _duties(self) -> str:
        duties = self._dice.shuffled(self._category[self._cell.skill])[:2]  # type: ignore[literal-required]
        duties += self._dice.shuffled(self._occupation["duties"])[: 1 + self._dice.below(2)]
        general = 1 if self._stated else 2
        if not self._stated or self._dice.chance(0.6):
            duties += self._dice.shuffled(self._wording["levels"][self._cell.education]["duties"])[:general]
        wordings = [self._reword(duty) for duty in self._dice.shuffled(duties)]
        listed = ", ".join(wordings[:-1]) + self._wording["conjunction"] + wordings[-1]
        return self._say(self._dice.pick(self._wording["duty_frames"]), duties=listed)

    def _extras(self) -> dict[str, str]:
        wording, pick, shuffled = self._wording, self._dice.pick, self._dice.shuffled
        neighbour = pick(_categories()[self._cell.category]["neighbours"])
        duty = self._reword(pick(_occupations(self._cell.language)[neighbour][self._cell.skill]))  # type: ignore[literal-required]
        distractors = wording["distractors"]["simple"] + (wording["distractors"]["skilled"] if self._cell.skill == "skilled" else [])
        quality, second_quality = shuffled(wording["qualities"])[:2]
        benefit, second_benefit = shuffled(wording["benefits"])[:2]
        return {
            "blurb": self._say(pick(wording["blurbs"])),
            "colleagues": self._say(pick(wording["colleague_frames"]), duty=duty),
            "quality": self._say(quality),
            "second quality": self._say(second_quality),
            "distractor": self._say(pick(distractors)),
            "benefit": self._say(benefit),
            "second benefit": self._say(second_benefit),
            "hours": self._say(pick(wording["hours"])),
            "application": self._say(pick(wording["applications"])),
        }

    def _ad_words(self) -> dict[str, str]:
        title = self._dice.pick(self._occupation["titles"][self._cell.education])
        names, forms = self._wording["companies"]["names"], self._wording["companies"]["forms"]
        return {
            "title": title,
            "Title": title[0].upper() + title[1:],
            "a_title": f"{'an' if title[0] in 'aeiouI' else 'a'} {title}",
            "company": f"{self._dice.pick(names)} {self._dice.pick(forms)}",
            "place": self._dice.pick(self._wording["places"]),
            # Drawn regardless of the category: who the employer is does not tell what the job is.
            "industry": self._dice.pick(self._wording["industries"]),
        }

    def _reword(self, duty: str) -> str:
        return self._dice.pick(duty.split(" / "))

    def _say(self, sentence: str, **words: str) -> str:
        """Fill in the names and, of `[Ihr|dein]`, take the form this ad uses."""
        filled = sentence.format_map(self._words | words)
        return re.sub(r"\[([^|\]]*)\|([^\]]*)\]", lambda forms: forms.group(1 + self._form), filled)


@cache
def _read(name: str) -> object:
    return parse_yaml(files("training.data").joinpath("sample_facts", f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def _categories() -> dict[str, _Category]:
    return cast(dict[str, _Category], _read("categories"))


def _wording(language: str) -> _Wording:
    return cast(_Wording, _read(f"wording_{language}"))


def _occupations(language: str) -> dict[str, _Occupations]:
    return cast(dict[str, _Occupations], _read(f"occupations_{language}"))


def _summarise(ads: Sequence[dict[str, str]]) -> SampleSummary:
    def counts(column: str, classes: Sequence[str]) -> dict[str, int]:
        found = Counter(ad[column] for ad in ads)
        return {name: found[name] for name in classes}

    heads = {"category": tuple(_categories()), "education": EDUCATIONS}
    return SampleSummary(
        rows=len(ads),
        classes={head: counts(head, classes) for head, classes in heads.items()},
        missing={head: counts(head, [""])[""] for head in heads},
        languages=counts("language", ("en", "de")),
    )
