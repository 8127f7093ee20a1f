from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from cluster.storage import Storage
from serving.errors import ScoringError
from serving.scoring.files import File, survey
from serving.scoring.parts import Scoring, Wanted, open_folder, part_name, plan, write_part
from tests.careless import careless_storage, refuse

MANIFEST: Any = SimpleNamespace(
    text_template="{title}: {text}",
    heads=(SimpleNamespace(name="category", classes=("a", "b")),),
    files={"weights.safetensors": SimpleNamespace(sha256="ab" * 32)},
)


def table(folder: Path, content: str = "id,title,text\n1,a,b\n2,c,d\n3,e,f\n", name: str = "ads.csv") -> File:
    (folder / name).write_text(content)
    return survey(str(folder / name), 2)


def planned(*files: File, version: int = 1, **wanted: Any) -> Scoring:
    return plan(files, Wanted(block_rows=2, **wanted), version, MANIFEST, precision="auto", max_characters=100)


def test_a_plan_says_what_the_answers_are_answers_to(tmp_path: Path) -> None:
    scoring = planned(table(tmp_path))
    assert (scoring.rows, scoring.parts, scoring.version, scoring.text) == (3, 2, 1, "{title}: {text}")
    assert scoring.columns == dict.fromkeys(["id", "title", "text"], "string")
    assert planned(table(tmp_path), columns=("id",), text="title").columns == {"id": "string"}


@pytest.mark.parametrize(
    ("contents", "wanted", "reason"),
    [
        (
            ["id,text\n1,2\n"],
            {},
            "0.csv: has no column 'title', which the version's text template '{title}: {text}' names; its columns are",
        ),
        (["id,text\n1,2\n"], {"text": "body"}, "0.csv: has no column 'body'; its columns are 'id', 'text'"),
        (["title,text\n1,2\n"], {"columns": ("id",)}, "0.csv: has no column 'id'; its columns are 'title', 'text'"),
        (["title,text,error\n1,2,3\n"], {}, "column 'error' of the table has the name of a column of answers"),
        (["title,text,category\n1,2,3\n"], {}, "column 'category' of the table has the name of a column of answers"),
        (["title,text\n1,2\n", "title,text,id\n1,2,3\n"], {}, "1.csv: column 'id' is string, but missing in "),
        (["title,text,id\n1,2,3\n", "title,text\n1,2\n"], {}, "1.csv: column 'id' is missing, but string in "),
    ],
)
def test_a_table_that_cannot_be_scored(contents: list[str], wanted: dict[str, Any], reason: str, tmp_path: Path) -> None:
    files = [table(tmp_path, content, f"{number}.csv") for number, content in enumerate(contents)]
    with pytest.raises(ScoringError) as caught:
        planned(*files, **wanted)
    assert reason in caught.value.message


def test_the_hint_names_the_columns_that_can_stay(tmp_path: Path) -> None:
    with pytest.raises(ScoringError) as caught:
        planned(table(tmp_path, "title,text,category,version\n1,2,3,4\n"))
    assert caught.value.hint == "leave it out: --columns 'title,text'"


def test_files_of_json_lines_may_name_other_columns(tmp_path: Path) -> None:
    files = [table(tmp_path, f'{{"title": "a", "text": "b", "{name}": 1}}\n', f"{name}.jsonl") for name in ("x", "y")]
    assert list(planned(*files).columns) == ["title", "text", "x", "y"]


def test_types_must_be_the_same_in_all_files(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for name, value in (("a", 1), ("b", "one")):
        pq.write_table(pa.table({"title": ["t"], "text": ["t"], "n": [value]}), tmp_path / f"{name}.parquet")
    files = [survey(str(tmp_path / f"{name}.parquet"), 2) for name in "ab"]
    with pytest.raises(ScoringError, match="column 'n' is string, but int64 in"):
        planned(*files)
    assert planned(*files, columns=("title",)).columns == {"title": "string"}


def test_the_same_command_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    out, scoring = Storage(str(tmp_path / "out")), planned(table(tmp_path))
    assert open_folder(out, scoring) == set()
    write_part(out, 1, pa.table({"id": [3]}))
    draft = tmp_path / "out/.tmp-half"
    draft.write_bytes(b"PAR1")
    assert open_folder(out, planned(table(tmp_path))) == {1}
    assert not draft.exists()
    write_part(out, 0, pa.table({"id": [1, 2]}))
    assert open_folder(out, scoring) == {0, 1}
    # Whoever reads the folder as a table sees the rows in their order, and not the manifest.
    assert pyarrow.dataset.dataset(tmp_path / "out").to_table().to_pydict() == {"id": [1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "changes", "difference"),
    [
        (None, {"version": 2}, "version was 1, but is 2"),
        (None, {"scores": True}, "scores was False, but is True"),
        (None, {"text": "title"}, "text was '{title}: {text}', but is 'title'"),
        (None, {"columns": ("id",)}, "columns was id, title, text, but is id"),
        ("id,title,text\n1,a,b\n2,c,d\n3,e,F\n", {}, "ads.csv has another content than before"),
    ],
)
def test_another_command_is_refused_unless_it_may_begin_again(
    content: str | None, changes: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    out = Storage(str(tmp_path / "out"))
    open_folder(out, planned(table(tmp_path)))
    write_part(out, 0, pa.table({"id": [1]}))
    other = planned(table(tmp_path, content) if content else table(tmp_path), **changes)
    with pytest.raises(ScoringError) as caught:
        open_folder(out, other)
    assert "out: holds another scoring: " in caught.value.message
    assert caught.value.message.endswith(difference)
    assert "--overwrite" in caught.value.hint
    assert out.exists(part_name(0))
    assert open_folder(out, other, overwrite=True) == set()
    assert open_folder(out, other) == set()


def test_a_folder_whose_stores_answer_was_lost_is_begun(tmp_path: Path) -> None:
    with careless_storage() as (storage, store):
        store.after = refuse(FileExistsError("asked twice"))
        assert open_folder(storage, planned(table(tmp_path))) == set()
        assert storage.names() == ["_manifest.json"]


@pytest.mark.parametrize("names", [["ads.csv"], ["part-000000.parquet"], ["_manifest.json", "notes.txt"], ["_manifest.json"]])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_ever_taken_away(names: list[str], overwrite: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    scoring = planned(table(tmp_path.parent))
    with pytest.raises(ScoringError, match="holds"):
        open_folder(Storage(str(tmp_path)), scoring, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"PAR1")
    with pytest.raises(ScoringError, match=r"holds 'out\.parquet', but no scoring"):
        open_folder(Storage(str(tmp_path / "out.parquet")), planned(table(tmp_path)))
