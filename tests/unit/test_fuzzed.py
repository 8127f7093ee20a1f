"""What fuzzing found worth keeping is read again."""

from pathlib import Path

import pytest

from tests.fuzz.readers import CORPUS, READERS


@pytest.mark.parametrize("file", sorted(CORPUS.rglob("*")), ids=lambda file: f"{file.parent.name}-{file.name[:8]}")
def test_what_was_found_is_taken_or_refused(file: Path) -> None:
    if file.is_file():
        READERS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("reader", list(READERS))
def test_each_reader_has_a_corpus_with_one_that_it_takes(reader: str) -> None:
    assert len(list((CORPUS / reader).iterdir())) > 10
