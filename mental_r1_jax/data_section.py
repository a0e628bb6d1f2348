"""The recipe's section `data`: which labelled posts to train and evaluate on."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveInt

from mental_r1_jax.section import LocalPath, Section


class CustomSet(Section):
    """A user's own data set: a folder `root/NAME` in the paper's CSV layout.

    Attributes:
        labels: every label, exactly as the `label` column spells it.
        question: the user turn before the post, for sets without a `mental_prompt` column.
        asks_for: what the set is about, for tables and the model card.
        validation_file: whether the validation split is `val_clean.csv` or `dev_clean.csv`.
        ordered: whether the labels are degrees of one thing, listed mildest first.
        positive_labels: the labels that a clinical reader wants to find; none means all but the
            mildest of an ordered set, and no such labels otherwise.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    question: str | None = None
    asks_for: str = ""
    validation_file: Literal["val", "dev"] = "val"
    ordered: bool = False
    positive_labels: tuple[str, ...] = ()


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
