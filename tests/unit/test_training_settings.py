"""training.settings: the defaults, templates, and every message."""

from pathlib import Path

import pytest

from cluster.errors import SettingsError
from training.search_settings import Choices, Range
from training.settings import TrainingSettings, load_settings
from training.template import template_columns, template_parts

FILE = "twohead.yaml"


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load a settings file with one section `training` and return the refusal's text, without the file's name."""
    monkeypatch.chdir(tmp_path)

    def refused(yaml: str) -> str:
        Path(FILE).write_text(f"training:\n  {yaml}\n", encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            load_settings(Path(FILE), [])
        return caught.value.message.replace(f"{FILE}: training.", "").replace(f"{FILE}: training:", "training:")

    return refused


def test_defaults_are_valid_and_survive_json():
    settings = TrainingSettings()
    assert list(settings.heads) == ["category", "education"]
    assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


def test_load_settings_reads_the_file_and_overrides(tmp_path: Path):
    file = tmp_path / FILE
    file.write_text("training: {data: {files: [a.csv], text: '{title}: {text}'}, heads: {mood: {}}}", encoding="utf-8")
    settings = load_settings(file, ["training.data.max_rows=40", "training.search_space.dropout=0.2"])
    assert settings.data.files == ("a.csv",)
    assert settings.data.max_rows == 40
    assert settings.search_space.dropout == 0.2


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("data: {files: []}", "data.files is list, but must name at least one file"),
        ("data: {files: a.csv}", 'data.files is "a.csv", but must be a valid tuple'),
        ("data: {text: text}", 'data.text is "text", but must name at least one column in braces, like {text}'),
        (
            "data: {text: '{code[:4]}'}",
            'data.text is "{code[:4]}", but must hold whole columns; only split.group_by can take a prefix like {code[:4]}',
        ),
        ("data: {text: '{a'}", "data.text is \"{a\", but must be different: expected '}' before end of string"),
        ("data: {text: '{}'}", 'data.text is "{}", but must hold {column} or {column[:N]} in braces, not {}'),
        ("data: {text: '{a!r}'}", 'data.text is "{a!r}", but must hold {column} or {column[:N]} in braces, not {a!r}'),
        ("data: {text: '{a:>3}'}", 'data.text is "{a:>3}", but must hold {column} or {column[:N]} in braces, not {a:>3}'),
        ("data: {max_rows: 9}", "data.max_rows is 9, but must be greater than or equal to 10"),
        ("data: {delimiter: ';;'}", 'data.delimiter is ";;", but must be different: string should have at most 1 character'),
        ("data: {delimiter: ''}", 'data.delimiter is "", but must be different: string should have at least 1 character'),
        ("data: {empty_texts: keep}", "data.empty_texts is \"keep\", but must be 'error' or 'drop'"),
        ("data: {duplicates: error}", "data.duplicates is \"error\", but must be 'keep' or 'drop'"),
        ("data: {leaks: keep}", "data.leaks is \"keep\", but must be 'error', 'warn' or 'drop'"),
        ("data: {column: text}", "data.column is not a setting"),
        (
            "data: {split: {validation_fraction: 0.6, test_fraction: 0.4}}",
            "data.split: validation_fraction 0.6 and test_fraction 0.4 leave no training examples",
        ),
        ("data: {split: {test_fraction: 1}}", "data.split.test_fraction is 1, but must be less than 1"),
        ("data: {split: {test_fraction: -0.1}}", "data.split.test_fraction is -0.1, but must be greater than or equal to 0"),
        (
            "data: {split: {group_by: code}}",
            'data.split.group_by is "code", but must name at least one column in braces, like {code} or {code[:4]}',
        ),
        (
            "data: {split: {group_by: '{code[2:4]}'}}",
            'data.split.group_by is "{code[2:4]}", but must hold {column} or {column[:N]} in braces, not {code[2:4]}',
        ),
        ("heads: {}", "heads: Dictionary should have at least 1 item after validation, not 0"),
        ("heads: {2x: {}}", "heads.2x.[key] is \"2x\", but must be different: string should match pattern '^[A-Za-z_][A-Za-z0-9_]*$'"),
        ("heads: {mood: {classes: [good]}}", "heads.mood.classes is list, but must list at least two classes, each once"),
        ("heads: {mood: {classes: [good, good]}}", "heads.mood.classes is list, but must list at least two classes, each once"),
        ("heads: {mood: {classes: [good, 1]}}", "heads.mood.classes.1 is 1, but must be a valid string"),
        ("heads: {mood: {ordered: true}}", "heads.mood: ordered is true, so classes must list them from lowest to highest"),
        ("heads: {mood: {loss_weight: 0}}", "heads.mood.loss_weight is 0, but must be greater than 0"),
        (
            "heads: {mood: {class_weighting: sqrt}}",
            "heads.mood.class_weighting is \"sqrt\", but must be 'none', 'inverse_sqrt' or 'balanced'",
        ),
        ("encoder: {pooling: max}", "encoder.pooling is \"max\", but must be 'auto', 'cls', 'pooler' or 'mean'"),
        ("encoder: {max_tokens: 4}", "encoder.max_tokens is 4, but must be greater than or equal to 8"),
        ("encoder: {sha256: abc}", "encoder.sha256 is \"abc\", but must be different: string should match pattern '^[0-9a-f]{64}$'"),
        ("fit: {epochs: 0}", "fit.epochs is 0, but must be greater than or equal to 1"),
        ("fit: {layer_decay: 1.1}", "fit.layer_decay is 1.1, but must be less than or equal to 1"),
        ("fit: {seed: -1}", "fit.seed is -1, but must be greater than or equal to 0"),
        ("fit: {seed: 2147483648}", "fit.seed is 2147483648, but must be less than 2147483648"),
        ("fit: {precision: fp16}", "fit.precision is \"fp16\", but must be 'auto', 'fp32' or 'bf16'"),
        ("search_space: {dropout: {low: 1, high: 0}}", "search_space.dropout.range: low is 1.0, but must be below high (0.0)"),
        (
            "search_space: {dropout: {low: 0, high: 1, log: true}}",
            "search_space.dropout.range: low is 0.0, but must be above 0 with log: true",
        ),
        ("search_space: {dropout: {low: 0}}", "search_space.dropout.range.high is missing"),
        (
            "search_space: {dropout: {choices: []}}",
            "search_space.dropout.choices.choices is list, but must be different: "
            "tuple should have at least 1 item after validation, not 0",
        ),
        (
            "search_space: {heads: {mood: {}}}",
            "training: search_space.heads names the head 'mood', but the heads are category, education",
        ),
        (
            "tuning: {score_weights: {mood: 1}}",
            "training: tuning.score_weights names the head 'mood', but the heads are category, education",
        ),
        ("tuning: {score_weights: {category: 0}}", "training: tuning.score_weights are all 0, but at least one must be above 0"),
        ("tuning: {reduction_factor: 1}", "tuning.reduction_factor is 1, but must be greater than 1"),
    ],
)
def test_message(message, yaml: str, expected: str):
    assert message(yaml) == expected


def test_every_finding_is_listed(message):
    found = message("fit: {epochs: 0, patience: 0}").split("\n")
    assert len(found) == 2


def test_how_classes_weigh_is_decided_when_settings_are_read():
    heads = {"a": {"class_weighting": "auto"}, "b": {}, "c": {"class_weighting": "balanced"}}
    own = {"a": {"class_weighting": "auto"}, "b": {"class_weighting": {"choices": ["balanced", "auto", "none"]}}}
    settings = TrainingSettings.model_validate({"heads": heads, "search_space": {"heads": own}})
    assert [one.class_weighting for one in settings.heads.values()] == ["none", "none", "balanced"]
    assert settings.search_space.class_weighting is None
    assert settings.search_space.heads["a"].class_weighting == "none"
    assert settings.search_space.heads["b"].class_weighting == Choices(choices=("balanced", "none"))


def test_a_dimension_is_chosen_by_its_kind():
    space = TrainingSettings.model_validate(
        {"search_space": {"dropout": {"low": 0, "high": 1}, "hidden_size": {"choices": [0, 8]}, "loss_weight": 2, "layer_decay": None}}
    ).search_space
    assert space.dropout == Range(low=0, high=1)
    assert space.hidden_size == Choices(choices=(0, 8))
    assert (space.loss_weight, space.layer_decay) == (2, None)


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{text}", [("", "text", None)]),
        ("{job title}: {text}!", [("", "job title", None), (": ", "text", None), ("!", None, None)]),
        ("{code[:4]}", [("", "code", 4)]),
        ("{a[:12]}-{b}", [("", "a", 12), ("-", "b", None)]),
        ("a.b {a.b}", [("a.b ", "a.b", None)]),
        ("{{{a}}}", [("{", None, None), ("", "a", None), ("}", None, None)]),
    ],
)
def test_template_parts(template: str, parts: list[tuple[str, str | None, int | None]]):
    assert template_parts(template) == parts


def test_template_columns_are_listed_once_in_order():
    assert template_columns("{b[:2]} {a} {b}") == ["b", "a"]


@pytest.mark.parametrize("template", ["{a[0]}", "{a[:0]}", "{a[:]}", "{a[:x]}", "{[:4]}", "{a[:4]b}", "{a[:4]:5}", "{", "}"])
def test_template_parts_refuses(template: str):
    with pytest.raises(ValueError, match=r"\{column\}|Single|expected"):
        template_parts(template)
