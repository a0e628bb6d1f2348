"""Checked sets as TensorFlow Datasets: built once, read by random access, without TensorFlow.

A set is one `BuilderConfig` of one builder, and its records lie in

    TFDS_DIR / labelled_posts / SET_NAME / 1.3.N

where N is the beginning of the set's content hash as a number. A set built from other files,
labels or options has another version, so a stale build is never taken for the current one. TFDS
writes into an `incomplete.*` folder and renames it at the end, so a version exists complete or not
at all. Older versions stay where they are, for a run may be reading them.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import operator
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import tensorflow_datasets as tfds

from mental_r1_jax.data.benchmarks import SPLITS, Split
from mental_r1_jax.data.records import CheckedSet, Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.private_files import close_to_others

_FORMAT_VERSION = "1.3"  # of the record's fields
_HASH_DIGITS = 12


@dataclass(eq=False)
class PostsConfig(tfds.core.BuilderConfig):
    """TFDS's name for one set; `checked` holds its posts while they are being written."""

    checked: CheckedSet | None = None


class _LocalInfo(tfds.core.DatasetInfo):
    """A `DatasetInfo` that never looks for metadata of its set on the network."""

    def initialize_from_bucket(self) -> None:
        """Do nothing: sets of labelled posts are only ever on this machine."""


class LabelledPosts(tfds.core.GeneratorBasedBuilder):
    """Posts with a label and the question asked about them."""

    VERSION = tfds.core.Version(f"{_FORMAT_VERSION}.0")
    # No checksums of downloads, for there are none. Looking for them would also need
    # importlib_resources, which TFDS 4.9.10 imports there without depending on it.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description="Labelled posts of one data set, checked row by row.",
            features=tfds.features.FeaturesDict(
                {
                    "row": np.int64,
                    "text": tfds.features.Text(),
                    "label": tfds.features.Text(),
                    "question": tfds.features.Text(),
                    # A record has every field of its set: None is no element, a string is one.
                    **{
                        name: tfds.features.Sequence(tfds.features.Text())
                        for name in self._optional_fields()
                    },
                }
            ),
            disable_shuffling=True,  # records keep the order of the file
        )

    def _optional_fields(self) -> list[str]:
        """The fields that some post of the set has; others would double the time of writing."""
        checked = self.builder_config.checked
        posts = [post for split in SPLITS for post in checked.examples[split]]
        return [
            name
            for name in ("group", "reasoning")
            if any(getattr(post, name) is not None for post in posts)
        ]

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        checked, optional = self.builder_config.checked, self._optional_fields()
        for index, example in enumerate(checked.examples[split]):
            yield (
                index,
                {
                    "row": example.row,
                    "text": example.text,
                    "label": example.label,
                    "question": example.question,
                    **{name: _elements(getattr(example, name)) for name in optional},
                },
            )


class PostSource(Sequence[Example]):
    """One split of a built set: read-only, random access, decoded one record at a time."""

    def __init__(self, records: Sequence[dict[str, Any]], set_name: str, split: Split) -> None:
        """Wrap what `as_data_source` returns."""
        self._records = records
        self._set_name = set_name
        self._split: Split = split

    def __len__(self) -> int:
        """Return the number of posts."""
        return len(self._records)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Example | list[Example]:
        """Return one post, or a list for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"post {position} of {len(self)} in {self._set_name}/{self._split}")
        record = self._records[position % len(self)]
        return Example(
            set_name=self._set_name,
            split=self._split,
            row=int(record["row"]),
            text=record["text"].decode("utf-8"),
            label=record["label"].decode("utf-8"),
            question=record["question"].decode("utf-8"),
            group=_optional(record.get("group", ())),
            reasoning=_optional(record.get("reasoning", ())),
        )


def build_set(checked: CheckedSet, tfds_dir: Path) -> Path:
    """Write `checked` as a TFDS set unless it is there already; return the folder of its version.

    Safe to call from several processes at once, and to be killed at any moment.

    Raises:
        UserError: the set has errors.
    """
    name = checked.spec.name
    if checked.errors:
        raise UserError(
            f"The data set {name!r} has {len(checked.errors)} errors and cannot be built",
            "none",
            str(checked.errors[0]),
            "`mental-r1 data` lists them all.",
        )
    folder = built_folder(tfds_dir, name, checked.content_hash)
    tfds_dir.mkdir(parents=True, exist_ok=True, mode=0o700)  # people's posts: for this user only
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / ".lock"):
        if not folder.exists():
            for abandoned in folder.parent.glob("incomplete.*"):  # of a process that was killed
                shutil.rmtree(abandoned)
            _write_records(checked, tfds_dir)
            close_to_others(folder)
    return folder


def built_folder(tfds_dir: Path, name: str, content_hash: str) -> Path:
    """Return the folder of the version of set `name` with this content hash, built or not."""
    return tfds_dir / LabelledPosts.name / name / _version(content_hash)


def open_set(folder: Path, split: Split) -> PostSource:
    """Return one split of the built set in `folder`, see `built_folder`.

    Raises:
        UserError: the set has not been built there.
    """
    if not folder.is_dir():
        raise UserError(
            "The data set has not been built",
            "the version that belongs to the current files",
            f"no folder {folder}",
            "Run `mental-r1 data`.",
        )
    with _quiet():
        records = tfds.builder_from_directory(folder).as_data_source(split=split)
    return PostSource(records, folder.parent.name, split)


def _write_records(checked: CheckedSet, tfds_dir: Path) -> None:
    """Let TFDS write all splits; nothing is downloaded and nothing printed."""
    with _quiet():
        builder = LabelledPosts(
            data_dir=tfds_dir,
            config=PostsConfig(
                name=checked.spec.name, version=_version(checked.content_hash), checked=checked
            ),
            file_format="array_record",
        )
        # Without a folder for downloads TFDS would make one in the user's home.
        with tempfile.TemporaryDirectory() as empty:
            builder.download_and_prepare(
                download_dir=empty,
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
                ),
            )


def _elements(text: str | None) -> list[str]:
    """An optional text as a sequence of none or one."""
    return [] if text is None else [text]


def _optional(elements: Sequence[bytes]) -> str | None:
    """What `_elements` was given."""
    return elements[0].decode("utf-8") if len(elements) else None


def _version(content_hash: str) -> str:
    """The TFDS version of a content hash; TFDS allows only numbers there."""
    return f"{_FORMAT_VERSION}.{int(content_hash[:_HASH_DIGITS], 16)}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; the system releases it when the process ends, however."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's banners, progress bars and remarks on unlisted configs off the console."""
    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()
