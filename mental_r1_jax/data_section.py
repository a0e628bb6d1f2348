"""The recipe's section `data`: which labelled posts to train and evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from mental_r1_jax.section import LocalPath, Section

FileFormat = Literal["auto", "csv", "tsv", "jsonl", "json", "parquet"]
Layout = Literal["auto", "columns", "imhi", "instruction", "chat", "sharegpt"]


class SplitFiles(Section):
    """The three files of a set that comes with its splits.

    Attributes:
        train: the training posts.
        validation: the posts that checkpoints are chosen by.
        test: the posts that are reported on.
    """

    train: Path
    validation: Path
    test: Path


class ColumnMap(Section):
    """Names of a file's columns, or keys of its objects.

    Attributes:
        text: the post.
        label: its label.
        question: the user turn before the post; null asks the set's `question` of every post.
        group: whom or what the post belongs to (a writer, an age band); null: nobody says.
        reasoning: reasoning that leads to the label, for `sft.traces=rows`; null: there is none.
    """

    text: str = "text"
    label: str = "label"
    question: str | None = None
    group: str | None = None
    reasoning: str | None = None


class CustomSet(Section):
    """A user's own data set: files in one of the formats of docs/data.md, or a folder `root/NAME`.

    Attributes:
        labels: every label, exactly as the files spell it (or as `label_map` does).
        question: the user turn before the post, for sets whose files have none.
        asks_for: what the set is about, for tables and the model card.
        validation_file: whether the validation split is `val_clean.csv` or `dev_clean.csv`.
        ordered: whether the labels are degrees of one thing, listed mildest first.
        positive_labels: the labels that a clinical reader wants to find; none means all but the
            mildest of an ordered set, and no such labels otherwise.
        files: `{train: FILE, validation: FILE, test: FILE}`, or one file; a relative path counts
            from where the command is started. null means a folder in the paper's CSV layout.
        format: how the files are written; `auto` tells by ending and content.
        layout: how a row is laid out; `auto` tells by the names of its columns.
        columns: names of the columns, for files that call them otherwise.
        text_columns: columns that make the post together, joined by an empty line; in place of
            `columns.text`.
        label_map: label in the files -> label of `labels`, for example `{0: "No", 1: "Yes"}`.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    question: str | None = None
    asks_for: str = ""
    validation_file: Literal["val", "dev"] = "val"
    ordered: bool = False
    positive_labels: tuple[str, ...] = ()
    files: SplitFiles | Path | None = None
    format: FileFormat = "auto"
    layout: Layout = "auto"
    columns: ColumnMap = ColumnMap()
    text_columns: tuple[str, ...] = ()
    label_map: dict[str, str] = {}

    @pydantic.field_validator("label_map", mode="before")
    @classmethod
    def _keys_as_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        keys = [value if (text := label_text(key)) is None else text for key, value in given.items()]
        return dict(zip(keys, given.values(), strict=True))


class DataConfig(Section):
    """Which labelled posts to train and evaluate on.

    Attributes:
        root: folder with one sub-folder a set; null means the embedded synthetic posts.
        sets: names of the sets to mix.
        custom_sets: specifications of sets that are not among the paper's eight.
        tfds_dir: where built TensorFlow Datasets live; null means the user's cache folder.
        on_duplicate: what to do with a text that occurs again, inside or across splits.
        absurd_post_chars: longer posts are reported as a warning.
        limit_per_set: use so many training posts of each set, evenly spaced; null means all.
        label_noise: share of training posts whose label is drawn at random from the set's labels,
            for rewards and template traces alike; held-out posts keep theirs.
    """

    root: LocalPath | None = None
    sets: Annotated[tuple[str, ...], Field(min_length=1)]
    custom_sets: dict[str, CustomSet] = {}
    tfds_dir: LocalPath | None = None
    on_duplicate: Literal["keep", "drop"] = "keep"
    absurd_post_chars: PositiveInt = 20_000
    limit_per_set: PositiveInt | None = None
    label_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @pydantic.model_validator(mode="after")
    def _distinct_sets(self) -> DataConfig:
        if len(set(self.sets)) != len(self.sets):
            raise ValueError(f"every set may be named once, got sets={list(self.sets)}")
        return self
