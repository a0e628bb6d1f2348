"""From a recipe to posts, building what is not built, and saying what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mental_r1_jax.config import CustomSet, ExperimentConfig
from mental_r1_jax.data import loading
from mental_r1_jax.data.benchmarks import SPLITS, SYNTHETIC_SPECS
from mental_r1_jax.data.loading import check_sets, label_counts, load_examples, tfds_folder
from mental_r1_jax.data.synthetic import SplitSizes, write_synthetic_sets
from mental_r1_jax.errors import UserError
from tests.data.folders import MOOD, csv_text, made_up_rows, write_set

MOOD_SET = CustomSet(labels=MOOD.labels, question="How is the writer?")


def recipe(tmp_path: Path, **data) -> ExperimentConfig:
    """A recipe with this data section; the built sets go under `tmp_path`."""
    return ExperimentConfig(
        model={"path": "none"},
        data={"tfds_dir": tmp_path / "tfds", **data},
        run={"output_dir": tmp_path / "run"},
    )


def mood_recipe(tmp_path: Path, **data) -> ExperimentConfig:
    """A recipe over the made-up set Mood."""
    return recipe(
        tmp_path, root=tmp_path / "csv", sets=("Mood",), custom_sets={"Mood": MOOD_SET}, **data
    )


def test_posts_of_a_users_own_set(tmp_path: Path) -> None:
    write_set(tmp_path / "csv", count=9)
    config = mood_recipe(tmp_path)
    for split in SPLITS:
        (source,) = load_examples(config, split).values()
        assert [(e.text, e.label, e.question) for e in source] == made_up_rows(split, 9)
        assert {e.split for e in source} == {split}


def test_limits_spread_over_a_file_that_is_sorted_by_label() -> None:
    source = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    picked = loading.spread(source, 10)
    assert picked == ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    assert loading.spread(source, None) is source and loading.spread(source, 100) is source


def test_limit_shortens_training_only(tmp_path: Path) -> None:
    write_set(tmp_path / "csv", count=9)
    config = mood_recipe(tmp_path, limit_per_set=4)
    assert [e.row for e in load_examples(config, "train")["Mood"]] == [0, 2, 4, 6]
    assert len(load_examples(config, "test")["Mood"]) == 9


def test_noise_changes_labels_of_training_posts_only(tmp_path: Path) -> None:
    """With noise 1 every label is drawn from L: about (L - 1) / L of 400 are wrong, +- 4 sd."""
    write_set(tmp_path / "csv", count=400)
    clean = {s: list(load_examples(mood_recipe(tmp_path), s)["Mood"]) for s in SPLITS}
    config = mood_recipe(tmp_path, label_noise=1.0)
    for split in ("validation", "test"):
        assert list(load_examples(config, split)["Mood"]) == clean[split]
    noisy = load_examples(config, "train")["Mood"]
    changed = [a != b for a, b in zip(clean["train"], noisy, strict=True)]
    share = 1 - 1 / len(MOOD.labels)
    assert abs(sum(changed) - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    assert {post.label for post in noisy} == set(MOOD.labels)
    assert [(p.row, p.text) for p in noisy] == [(p.row, p.text) for p in clean["train"]]
    assert list(noisy) == list(noisy[:]) == list(load_examples(config, "train")["Mood"])


def test_noise_depends_on_the_seed_and_keeps_most_labels(tmp_path: Path) -> None:
    """Of 400 posts 10% are drawn: 40 +- 4 sd, and no more than these change."""
    write_set(tmp_path / "csv", count=400)
    clean = load_examples(mood_recipe(tmp_path), "train")["Mood"]
    config = mood_recipe(tmp_path, label_noise=0.1)
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    rows = []
    for one in (config, other):
        noisy = load_examples(one, "train")["Mood"]
        rows.append([a.row for a, b in zip(clean, noisy, strict=True) if a != b])
        assert 0 < len(rows[-1]) < 40 + 4 * 6
    assert rows[0] != rows[1]


def test_sets_are_checked_once_and_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "csv", count=9)
    config = mood_recipe(tmp_path)
    checks = []
    original = loading.check_set
    monkeypatch.setattr(loading, "check_set", lambda *a: checks.append(a) or original(*a))
    load_examples(config, "train")
    load_examples(config, "test")
    assert len(checks) == 1
    (folder / "train_clean.csv").write_text(csv_text(made_up_rows("train", 10)), encoding="utf-8")
    assert len(load_examples(config, "train")["Mood"]) == 10
    assert len(checks) == 2


def test_duplicates_are_dropped_when_the_recipe_says_so(tmp_path: Path) -> None:
    rows = made_up_rows("train", 6)
    write_set(tmp_path / "csv", {"train": csv_text([*rows, rows[0]])})
    kept = load_examples(mood_recipe(tmp_path), "train")["Mood"]
    dropped = load_examples(mood_recipe(tmp_path, on_duplicate="drop"), "train")["Mood"]
    assert (len(kept), len(dropped)) == (7, 6)


def test_errors_in_the_files_stop_and_nothing_is_built(tmp_path: Path) -> None:
    write_set(tmp_path / "csv", {"train": csv_text([("tea", "Clam", "Q"), ("", "Calm", "Q")])})
    with pytest.raises(UserError, match=r"2 errors(.|\n)*train_clean.csv:2 \[label\]"):
        load_examples(mood_recipe(tmp_path), "test")
    assert not (tmp_path / "tfds").exists()


def test_embedded_sets_need_no_root(tmp_path: Path) -> None:
    names = ("Stress-Synthetic", "Risk-Synthetic")
    config = recipe(tmp_path, sets=names)
    posts = load_examples(config, "train")
    assert tuple(posts) == names
    assert [len(source) for source in posts.values()] == [400, 400]
    assert tuple(load_examples(config, "train")["Risk-Synthetic"]) == tuple(posts["Risk-Synthetic"])
    counts = label_counts(posts)
    assert {name: sum(of_set.values()) for name, of_set in counts.items()} == dict.fromkeys(
        names, 400
    )
    assert set(counts["Risk-Synthetic"]) == set(SYNTHETIC_SPECS["Risk-Synthetic"].labels)


def test_a_process_that_writes_the_embedded_sets_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(root: Path) -> None:
        write_synthetic_sets(root, sizes=SplitSizes(20, 10, 10))  # the other process
        write_synthetic_sets(root)

    monkeypatch.setattr(loading, "write_synthetic_sets", slower)
    checked = check_sets(recipe(tmp_path, sets=("Stress-Synthetic",)).data)
    assert len(checked["Stress-Synthetic"].examples["train"]) == 20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sets": ("Dreaddit",)}, "no folder to read it from"),
        ({"sets": ("Mood",), "root": "."}, "no data set called 'Mood'"),
        ({"sets": ("Dreaddit",), "root": "not/there"}, "data.root is not a folder"),
    ],
)
def test_recipes_that_name_no_data(tmp_path: Path, data: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_examples(recipe(tmp_path, **data), "train")


def test_built_sets_go_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recipe(tmp_path, sets=("Dreaddit",), tfds_dir=None).data
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tfds_folder(data) == tmp_path / "cache" / "mental_r1_jax" / "tfds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_folder(data) == tmp_path / ".cache" / "mental_r1_jax" / "tfds"
