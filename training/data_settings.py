"""Settings of the data: tables, text template, splits.

They do not know what the tables hold: `dataset` finds that out.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.settings import Section
from training.template import template_columns, template_parts

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SplitSettings(Section):
    """How examples are divided; files given for validation or test come first.

    Attributes:
        validation_fraction: Share of the examples for choosing (0 when `validation_files` are given).
        test_fraction: Share for the final report (0 when `test_files` are given).
        group_by: Template over columns; examples of one group stay together (`{code[:4]}` takes a prefix).
        seed: The same seed and data give the same split on every machine.
    """

    validation_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    group_by: str | None = None
    seed: int = 7

    @field_validator("group_by")
    @classmethod
    def _names_a_column(cls, value: str | None) -> str | None:
        if value is not None and not template_columns(value):
            raise ValueError("must name at least one column in braces, like {code} or {code[:4]}")
        return value

    @model_validator(mode="after")
    def _leaves_training_examples(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} leave no training examples"
            )
        return self


class DataSettings(Section):
    """Where the examples are and how a row becomes one.

    Attributes:
        files: Tables for training (CSV, TSV, JSON Lines, Parquet; a path, or a URI of one of `cluster.uris.STORES`).
        validation_files: Given validation tables, instead of a split.
        test_files: Given test tables, instead of a split.
        text: Template over columns that makes the text, like `{title}: {description}`.
        encoding: Character encoding of CSV, TSV and JSON Lines files.
        delimiter: Of CSV files; null means a comma (a tab for .tsv).
        missing_labels: Cell contents that mean "no label".
        max_rows: Use this many rows, chosen by seed (whole groups if `split.group_by` is set); null means all.
        empty_texts: `error` refuses them, `drop` counts and leaves them out.
        duplicates: `keep` them, or `drop` later copies of the same text and labels.
        leaks: A text in two splits: `error`, `warn`, or `drop` it from the training side.
    """

    files: tuple[str, ...] = ("ads.csv",)
    validation_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    text: str = "{text}"
    encoding: str = "utf-8"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    missing_labels: tuple[str, ...] = ("",)
    max_rows: int | None = Field(default=None, ge=10)
    empty_texts: Literal["error", "drop"] = "error"
    duplicates: Literal["keep", "drop"] = "keep"
    leaks: Literal["error", "warn", "drop"] = "drop"
    split: SplitSettings = SplitSettings()

    @field_validator("files")
    @classmethod
    def _at_least_one_file(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one file")
        return value

    @field_validator("text")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        if not template_columns(value):
            raise ValueError("must name at least one column in braces, like {text}")
        if any(length for _, _, length in template_parts(value)):
            raise ValueError("must hold whole columns; only split.group_by can take a prefix like {code[:4]}")
        return value
