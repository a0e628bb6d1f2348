"""The recipe's section `data`: which labelled posts to train and evaluate on."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from mental_r1_jax.section import LocalPath, Section

FileFormat = Literal["auto", "csv", "tsv", "jsonl", "json", "parquet"]
Layout = Literal["auto", "columns", "imhi", "instruction", "chat", "sharegpt"]


# Keys of a set that say how its `files` are read.
_OF_FILES = (
    *("format", "layout", "columns", "text_columns", "label_map"),
    *("split", "whole_groups", "topics", "topic_separator"),
)


class SetFiles(Section):
    """The files of a set: one for each split, or one for all.

    Attributes:
        train: the training posts.
        validation: the posts that checkpoints are chosen by.
        test: the posts that are reported on.
        all: all of them, to be split; `files: FILE` says the same.
    """

    train: LocalPath | None = None
    validation: LocalPath | None = None
    test: LocalPath | None = None
    all: LocalPath | None = None

    @pydantic.model_validator(mode="after")
    def _three_or_one(self) -> SetFiles:
        splits = [self.train, self.validation, self.test]
        if (None in splits) if self.all is None else any(splits):
            raise ValueError(
                "either train, validation and test, or all of them in one file, got "
                f"{self.model_dump(mode='json', exclude_none=True)}"
            )
        return self


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


class SplitShares(Section):
    """How the posts of one file are split, each label in the same shares.

    Attributes:
        validation: share of the posts that checkpoints are chosen by.
        test: share of the posts that are reported on; what both leave is for training.
        seed: another seed puts other posts into the splits, the same seed always the same ones.
    """

    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    seed: NonNegativeInt = 0

    @pydantic.model_validator(mode="after")
    def _something_to_train_on(self) -> SplitShares:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                "validation and test must leave posts to train on, got shares of "
                f"{self.validation} + {self.test}"
            )
        return self


class CustomSet(Section):
    """A user's own data set: files in one of the formats of docs/data.md, or a folder `root/NAME`.

    Attributes:
        labels: every label, exactly as the files spell it (or as `label_map` does).
        question: the user turn before the post, for sets whose files have none.
        asks_for: what the set is about, for tables and the model card.
        validation_file: whether the validation split is `val_clean.csv` or `dev_clean.csv`.
        ordered: whether the labels are degrees of one thing, listed mildest first.
        positive_labels: the labels that a clinical reader wants to find; none means all but the
            mildest of an ordered set, `Yes` of one with topics, and no such labels otherwise.
        files: `{train: FILE, validation: FILE, test: FILE}`, or one file; a relative path counts
            from where the command is started. null means a folder in the paper's CSV layout.
        format: how the files are written; `auto` tells by ending and content.
        layout: how a row is laid out; `auto` tells by the names of its columns.
        columns: names of the columns, for files that call them otherwise.
        text_columns: columns that make the post together, joined by an empty line; in place of
            `columns.text`.
        label_map: label in the files -> label of `labels` (or topic of `topics`), for example
            `{0: "No", 1: "Yes"}`.
        split: how the posts are split where `files` is one file.
        whole_groups: whether all posts of a group must lie in one split, as those of a writer;
            false for what many writers share, such as an age band.
        topics: of posts with several labels: label in the files -> question about it. Each post is
            asked each question, and `labels` are the two answers, `[Yes, No]` where none are given.
        topic_separator: what stands between the labels of a post in a cell that is text.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    question: str | None = None
    asks_for: str = ""
    validation_file: Literal["val", "dev"] = "val"
    ordered: bool = False
    positive_labels: tuple[str, ...] = ()
    files: SetFiles | None = None
    format: FileFormat = "auto"
    layout: Layout = "auto"
    columns: ColumnMap = ColumnMap()
    text_columns: tuple[str, ...] = ()
    label_map: dict[str, str] = {}
    split: SplitShares = SplitShares()
    whole_groups: bool = True
    topics: dict[str, str] = {}
    topic_separator: Annotated[str, Field(min_length=1)] = ";"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _two_answers(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("topics") and given.get("labels") is None:
            return {**given, "labels": ("Yes", "No")}
        return given

    @pydantic.field_validator("files", mode="before")
    @classmethod
    def _one_file(cls, given: Any) -> Any:
        return {"all": given} if isinstance(given, str | Path) else given

    @pydantic.field_validator("label_map", mode="before")
    @classmethod
    def _keys_as_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        keys = [label_text(key) for key in given]
        if None in keys or len(set(keys)) < len(keys):
            raise ValueError(f"every key must be another text, number or boolean, got {given}")
        return dict(zip(keys, given.values(), strict=True))

    @pydantic.model_validator(mode="after")
    def _mapped_to_labels(self) -> CustomSet:
        known = set(self.topics or self.labels)
        if unknown := sorted(set(self.label_map.values()) - known):
            among = "topics" if self.topics else "labels"
            raise ValueError(f"label_map leads to {unknown}, which are not among {among}")
        return self

    @pydantic.model_validator(mode="after")
    def _no_key_is_idle(self) -> CustomSet:
        blank = CustomSet.model_construct(labels=self.labels)
        given = {name for name in _OF_FILES if getattr(self, name) != getattr(blank, name)}
        if self.files is None and given:
            raise ValueError(f"{sorted(given)} say how `files` are read, and there are no files")
        if self.files is not None and self.validation_file != "val":
            raise ValueError("validation_file belongs to the paper's layout; files names the file")
        if self.layout not in ("auto", "columns") and self.maps_columns:
            raise ValueError(
                f"layout={self.layout} knows its columns; columns.group alone may be set with it"
            )
        if self.text_columns and self.columns.text != ColumnMap().text:
            raise ValueError("text_columns stands in place of columns.text; set one of them")
        if self.question is not None and self.columns.question is not None:
            raise ValueError("question is asked of every post; set it or columns.question")
        if self.files is not None and self.files.all is None and self.split != blank.split:
            raise ValueError("split is for one file; these files are split already")
        return self

    @pydantic.model_validator(mode="after")
    def _topics_ask_and_answer(self) -> CustomSet:
        if not self.topics:
            if self.topic_separator != ";":
                raise ValueError("topic_separator stands between topics, and there are none")
            return self
        both = [self.question, self.columns.question, self.columns.reasoning]
        if self.layout not in ("auto", "columns") or self.ordered or any(both):
            raise ValueError(
                "topics ask their own questions about the posts of a table; leave layout, ordered, "
                "question, columns.question and columns.reasoning out"
            )
        if len(self.labels) != 2 or len(self.positive_labels or ("Yes",)) != 1:
            raise ValueError(f"topics have two answers and one that says yes, got {self.labels}")
        if not {*(self.positive_labels or ("Yes",))} <= {*self.labels}:
            raise ValueError("name the answer that says yes in positive_labels, or call it Yes")
        if blank := sorted(t for t, asks in self.topics.items() if not asks.strip()):
            raise ValueError(f"every topic needs a question, got none for {blank}")
        return self

    @property
    def yes(self) -> str:
        """The answer that says that a topic is there."""
        return self.positive_labels[0] if self.positive_labels else "Yes"

    @property
    def maps_columns(self) -> bool:
        """Whether any column but that of the group is named."""
        mapped = self.columns.model_copy(update={"group": None})
        return bool(self.text_columns) or mapped != ColumnMap()


def label_text(value: object) -> str | None:
    """The text of a label that a file writes as text, number or boolean; None for anything else.

    Numbers that are equal have one text (1 and 1.0 are "1"), and NaN has none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal) and value == value:
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(value)
    return None


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
