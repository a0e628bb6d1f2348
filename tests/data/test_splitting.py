"""One file to three splits: what must stay together does, shares hold, the seed decides alone."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mental_r1_jax.config import CustomSet, DataConfig, ExperimentConfig, SplitShares
from mental_r1_jax.data.benchmarks import SPLITS, spec_for
from mental_r1_jax.data.checked_sets import check_set, content_hash
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.data.records import CheckedSet, Example
from mental_r1_jax.data.repeats import LocatedExample
from mental_r1_jax.data.splitting import SplitPosts, split_posts
from tests.data.folders import csv_text

Row = tuple[str, str, str | None]  # text, label, group

rows_of_a_file = st.lists(
    st.tuples(
        st.integers(0, 60).map("post {}".format),
        st.sampled_from(["Calm", "Upset", "Unsure"]),
        st.one_of(st.none(), st.integers(0, 20).map("writer {}".format)),
    ),
    min_size=1,
    max_size=80,
)
shares_of_splits = st.builds(
    SplitShares,
    validation=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 3),
)


def located(rows: Sequence[Row]) -> list[LocatedExample]:
    """The posts of one file, as its reader gives them."""
    return [
        LocatedExample("posts.csv", i + 2, Example("Mine", "train", i, text, label, "How?", group))
        for i, (text, label, group) in enumerate(rows)
    ]


def sides(split: SplitPosts) -> dict[int, str]:
    """The split of each row."""
    return {item.example.row: item.example.split for item in split.found}


def linked(rows: Sequence[Row], whole_groups: bool = True) -> list[set[int]]:
    """Rows that must stay together: a search through the graph of texts and groups."""
    left, parts = set(range(len(rows))), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            texts = {rows[i][0] for i in edge}
            groups = {rows[i][2] for i in edge} - {None} if whole_groups else set()
            edge = {i for i in left if rows[i][0] in texts or rows[i][2] in groups}
            left -= edge
        parts.append(part)
    return parts


@settings(max_examples=150, deadline=None)
@given(rows_of_a_file, shares_of_splits, st.booleans())
@example([("a", "Calm", "1"), ("b", "Calm", "1"), ("b", "Upset", "2")] * 5, SplitShares(), True)
def test_what_is_linked_stays_together_and_shares_hold(rows, shares, whole_groups) -> None:
    split = split_posts(located(rows), shares, whole_groups=whole_groups)
    parts = linked(rows, whole_groups)
    # A linked part counts for its rarest label.
    rarity = Counter(label for _, label, _ in rows)
    strata = defaultdict(list)
    for part in parts:
        strata[min({rows[i][1] for i in part}, key=lambda x: (rarity[x], x))].append(part)
    if max(map(len, strata.values())) < 3:
        assert not split.found and [error.kind for error in split.errors] == ["too few to split"]
        return
    side = sides(split)
    assert sorted(side) == list(range(len(rows)))
    assert all(len({side[i] for i in part}) == 1 for part in parts)
    wanted = (1 - shares.validation - shares.test, shares.validation, shares.test)
    largest = max(map(len, parts))
    found = Counter(side.values())
    for name, share in zip(SPLITS, wanted, strict=True):
        lacking = share * len(rows) - found[name]
        assert -largest < lacking + 1e-6 and lacking - 1e-6 < 2 * largest
    for of_label in strata.values():
        posts = [i for part in of_label for i in part]
        found = Counter(side[i] for i in posts)
        for name, share in zip(SPLITS, wanted, strict=True):
            assert abs(share * len(posts) - found[name]) < 3 * largest + 1e-6
    empty = [name for name in SPLITS if name not in side.values()]
    assert len(split.errors) == len(empty)


@settings(max_examples=40, deadline=None)
@given(rows_of_a_file, shares_of_splits, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, shares, chance) -> None:
    order = list(range(len(rows)))
    chance.shuffle(order)
    shuffled = sides(split_posts(located([rows[i] for i in order]), shares, whole_groups=True))
    plain = sides(split_posts(located(rows), shares, whole_groups=True))
    assert {order[place]: side for place, side in shuffled.items()} == plain


def test_topics_are_stratified_each_and_other_questions_are_not() -> None:
    """Of 300 posts each is asked two questions; a tenth has the rare topic. Others ask one each."""
    asked = [
        LocatedExample("posts.csv", i + 2, Example("Mine", "train", i, f"post {i}", label, topic))
        for i in range(300)
        for topic, every in (("rare?", 10), ("common?", 2))
        for label in ["Yes" if i % every == 0 else "No"]
    ]
    shares = SplitShares(validation=0.2, test=0.2)
    split = split_posts(asked, shares, whole_groups=True, by_question=True)
    rare = Counter(
        x.example.split
        for x in split.found
        if (x.example.question, x.example.label) == ("rare?", "Yes")
    )
    # Units are two examples: less than 3 x 2 of the 2 x 30 examples of the stratum, 3 of the 30.
    assert all(
        abs(rare[s] - share * 30) < 3 for s, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True)
    )
    single = [
        LocatedExample("posts.csv", i + 2, Example("Mine", "train", i, f"post {i}", "Yes", f"{i}?"))
        for i in range(30)
    ]
    counts = Counter(sides(split_posts(single, shares, whole_groups=True)).values())
    assert counts == {"train": 18, "validation": 6, "test": 6}


def many(count: int) -> list[Row]:
    """Posts of one writer each, a fifth of them with a rare label."""
    return [(f"post {i}", "Upset" if i % 5 == 0 else "Calm", f"writer {i}") for i in range(count)]


def test_without_large_groups_every_label_has_the_shares_in_every_split() -> None:
    split = split_posts(
        located(many(1000)), SplitShares(validation=0.2, test=0.1), whole_groups=True
    )
    counts = Counter((x.example.split, x.example.label) for x in split.found)
    for label, number in (("Calm", 800), ("Upset", 200)):
        for name, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
            assert abs(counts[name, label] - share * number) < 3


def test_another_seed_gives_another_split_of_the_same_shares() -> None:
    posts = located(many(200))
    first, again, other = (
        sides(split_posts(posts, SplitShares(seed=seed), whole_groups=True)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert sum(first[i] != other[i] for i in first) > 20
    assert Counter(first.values()) == Counter(other.values())


def test_large_groups_are_not_always_trained_on() -> None:
    """Else test sets would hold only people who write little."""
    rows = [(f"post {i}", "Calm", "much" if i < 10 else f"writer {i}") for i in range(100)]
    where = Counter(
        sides(split_posts(located(rows), SplitShares(seed=seed), whole_groups=True))[0]
        for seed in range(60)
    )
    assert set(where) == set(SPLITS) and where["train"] > 30


# ---- whole sets ----------------------------------------------------------------------------------


def described(file: Path, **keys) -> CustomSet:
    """A set of one file with a column `user`."""
    keys = {"columns": {"group": "user"}, **keys}
    return CustomSet(labels=("Calm", "Upset"), question="How?", files=file, **keys)


def write_posts(file: Path, rows: Sequence[Row]) -> Path:
    file.write_text(csv_text(rows, header=("text", "label", "user")), encoding="utf-8")
    return file


def checked(tmp_path: Path, rows: Sequence[Row], **keys) -> CheckedSet:
    on_duplicate = keys.pop("on_duplicate", "keep")
    file = write_posts(tmp_path / "posts.csv", rows)
    spec = spec_for("Mine", {"Mine": described(file, **keys)})
    return check_set(tmp_path, spec, on_duplicate)


def test_a_file_is_split_built_and_read(tmp_path: Path) -> None:
    file = write_posts(tmp_path / "posts.csv", many(100))
    data = DataConfig(
        sets=("Mine",), custom_sets={"Mine": described(file)}, tfds_dir=tmp_path / "tfds"
    )
    config = ExperimentConfig(model={"path": "x"}, data=data, run={"output_dir": tmp_path / "run"})
    posts = {split: list(load_examples(config, split)["Mine"]) for split in SPLITS}
    assert {split: len(found) for split, found in posts.items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    together = sorted((x for found in posts.values() for x in found), key=lambda x: x.row)
    assert [(x.text, x.label, x.group) for x in together] == many(100)
    assert all(x.split == split for split, found in posts.items() for x in found)


def test_every_option_of_the_split_is_another_set(tmp_path: Path) -> None:
    file = write_posts(tmp_path / "posts.csv", many(30))
    hashes = {
        content_hash(tmp_path, spec_for("Mine", {"Mine": described(file, **keys)}))
        for keys in (
            {},
            {"split": SplitShares(seed=1)},
            {"split": SplitShares(test=0.2)},
            {"split": SplitShares(validation=0.2)},
            {"whole_groups": False},
        )
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("whole_groups", [True, False])
def test_labels_too_rare_for_every_split_are_one_error_of_ours(tmp_path, whole_groups) -> None:
    rows = [("tea", "Calm", "a"), ("milk", "Upset", "b"), ("rain", "Calm", "c")]
    (error,) = checked(tmp_path, rows, whole_groups=whole_groups).errors
    what = "groups" if whole_groups else "posts"
    assert error.kind == "too few to split"
    assert f"at most 2 {what} with one label" in str(error) and f"3 {what} or more" in str(error)


def test_a_group_that_is_nearly_everything_leaves_a_split_empty(tmp_path: Path) -> None:
    rows = [(f"post {i}", "Calm", "one") for i in range(50)] + many(2)
    errors = checked(tmp_path, rows).errors
    assert {error.kind for error in errors} == {"too few to split"}
    band = checked(tmp_path, rows, whole_groups=False)
    assert not band.errors and len(band.examples["test"]) >= 5


def test_a_label_that_a_split_lacks_is_a_warning(tmp_path: Path) -> None:
    rows = [*((f"post {i}", "Calm", None) for i in range(40)), ("rain", "Upset", None)]
    found = checked(tmp_path, rows)
    assert not found.errors
    absent = [w for w in found.warnings if w.kind == "absent label"]
    assert len(absent) == 2 and all("'Upset' in " in w.value for w in absent)


def test_the_same_text_of_two_writers_is_on_one_side_and_said(tmp_path: Path) -> None:
    rows = [*many(60), *(("Post  7", "Calm", f"writer {i}") for i in range(20, 24))]
    found = checked(tmp_path, rows)
    sides_of_text = {
        split for split in SPLITS for x in found.examples[split] if x.text in ("post 7", "Post  7")
    }
    of_writers = {
        x.group: split for split in SPLITS for x in found.examples[split] if x.group is not None
    }
    assert len(sides_of_text) == 1
    assert {of_writers[f"writer {i}"] for i in (7, 20, 21, 22, 23)} == sides_of_text
    assert [w.kind for w in found.warnings] == ["repeated in split"] * 4
    dropped = checked(tmp_path, rows, on_duplicate="drop")
    assert sum(len(dropped.examples[split]) for split in SPLITS) == 60


def test_a_group_in_two_given_splits_is_an_error_with_both_places(tmp_path: Path) -> None:
    files = {}
    for split in SPLITS:
        rows = [(f"{split} {i}", ("Calm", "Upset")[i % 2], f"{split} {i}") for i in range(4)]
        extra = [(f"{split} again", "Calm", "anna.k")] if split != "validation" else []
        files[split] = write_posts(tmp_path / f"{split}.csv", [*rows, *extra])
    spec = spec_for("Mine", {"Mine": described(files)})
    (error,) = check_set(tmp_path, spec).errors
    assert (error.file, error.line, error.column) == (str(files["test"]), 6, "user")
    assert error.kind == "group in several splits"
    assert f"{files['train']}:6" in error.expected and "whole_groups" in error.expected
    assert "anna" not in str(error)
    assert not check_set(
        tmp_path, spec_for("Mine", {"Mine": described(files, whole_groups=False)})
    ).errors


# ---- RSD-15K: columns users, text, sentiment, time -------------------------------------


def rsd_rows(writers: int = 60) -> list[tuple[str, str, str, str]]:
    """Made-up rows in the layout of RSD-15K: writers with one to six posts, one level each post."""
    chance = random.Random(0)
    levels = ["Indicator", "Ideation", "Behavior", "Attempt"]
    return [
        (
            f"user-{writer}",
            f"Entry {entry} of diary {writer}:\nthe kettle, the rain.",
            chance.choices(levels, (8, 4, 2, 1))[0],
            f"2020-01-{entry + 1:02d} 10:00:00",
        )
        for writer in range(writers)
        for entry in range(chance.randint(1, 6))
    ]


def test_rsd_15k_is_read_with_its_own_columns_and_split_by_writer(tmp_path: Path) -> None:
    rows = rsd_rows()
    file = tmp_path / "rsd_15k.csv"
    file.write_text(csv_text(rows, header=("users", "text", "sentiment", "time")), "utf-8")
    mine = CustomSet(
        labels=("Indicator", "Ideation", "Behavior", "Attempt"),
        ordered=True,
        question="How far does the suicide-related content of these words go?",
        files=file,
        columns={"label": "sentiment", "group": "users"},
        split={"validation": 0.15, "test": 0.15, "seed": 7},
    )
    found = check_set(tmp_path, spec_for("RSD-15K", {"RSD-15K": mine}))
    assert not found.errors and not found.warnings
    writers = {split: {x.group for x in found.examples[split]} for split in SPLITS}
    assert len(set().union(*writers.values())) == sum(map(len, writers.values())) == 60
    together = [x for split in SPLITS for x in found.examples[split]]
    assert sorted((x.group, x.text, x.label) for x in together) == sorted(r[:3] for r in rows)
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        lacking = share * len(rows) - len(found.examples[split])
        assert -6 < lacking < 12  # the largest writer has six posts
        assert {x.label for x in found.examples[split]} == set(mine.labels)
