"""The made-up posts: deterministic, valid, disjoint, learnable from several words but from none."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from mental_r1_jax.data import synthetic
from mental_r1_jax.data.benchmarks import SPLITS, SYNTHETIC_SPECS
from mental_r1_jax.data.checked_sets import check_set
from mental_r1_jax.data.records import CheckedSet, Example
from mental_r1_jax.data.synthetic import SplitSizes, read_phrases, write_synthetic_sets
from mental_r1_jax.errors import UserError


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckedSet]:
    """All sets at their default sizes."""
    root = write_synthetic_sets(tmp_path_factory.mktemp("synthetic") / "sets")
    return {name: check_set(root, spec) for name, spec in SYNTHETIC_SPECS.items()}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_sets_are_valid_disjoint_and_of_the_right_size(sets: dict[str, CheckedSet]) -> None:
    assert len(sets) >= 4
    for checked in sets.values():
        assert checked.errors == checked.warnings == ()  # a repeat would be a warning
        assert [len(checked.examples[split]) for split in SPLITS] == [400, 60, 100]


def test_posts_are_of_moderate_length_and_vocabulary(sets: dict[str, CheckedSet]) -> None:
    texts = [e.text for c in sets.values() for split in SPLITS for e in c.examples[split]]
    assert all(8 <= len(words(text)) <= 26 for text in texts)
    assert len({word for text in texts for word in words(text)}) <= 450


def test_every_label_is_mildly_rarer_than_the_first(sets: dict[str, CheckedSet]) -> None:
    for name, checked in sets.items():
        counts = Counter(e.label for e in checked.examples["train"])
        assert set(counts) == set(SYNTHETIC_SPECS[name].labels)
        assert 1.1 < max(counts.values()) / min(counts.values()) < 3


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    sizes = SplitSizes(30, 10, 10)
    a, b, c = (
        files(write_synthetic_sets(tmp_path / folder, seed, sizes))
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[path] != c[path] for path in a if path.endswith(".csv"))


def test_the_folder_says_that_the_posts_are_synthetic(tmp_path: Path) -> None:
    root = write_synthetic_sets(tmp_path / "sets", sizes=SplitSizes(5, 5, 5))
    note = (root / "README.txt").read_text(encoding="utf-8")
    assert "SYNTHETIC" in note
    assert "No person wrote" in note
    with pytest.raises(UserError, match="exists already"):
        write_synthetic_sets(root)


def test_too_many_posts_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = read_phrases() | {"neutral": read_phrases()["neutral"][:2], "openings": [""]}
    monkeypatch.setattr(synthetic, "read_phrases", lambda: few)
    with pytest.raises(UserError, match="used up"):
        write_synthetic_sets(tmp_path / "sets", sizes=SplitSizes(5000, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_cues_are_several_words_and_belong_to_one_label() -> None:
    for name, cues in read_phrases()["cues"].items():
        assert tuple(cues) == SYNTHETIC_SPECS[name].labels
        phrases = [phrase for of_label in cues.values() for phrase in of_label]
        assert len(set(phrases)) == len(phrases)
        assert not set(phrases) & set(read_phrases()["neutral"])
        assert all(len(of_label) >= 8 for of_label in cues.values())
        assert all(len(phrase.split()) >= 4 for phrase in phrases)


def best_single_word_accuracy(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Accuracy on `test` of the best rule "word present -> label a, absent -> label b"."""
    majority = Counter(e.label for e in train).most_common(1)[0][0]
    best = 0.0
    for word in {w for e in train for w in words(e.text)}:
        present = Counter(e.label for e in train if word in words(e.text))
        absent = Counter(e.label for e in train if word not in words(e.text))
        yes = present.most_common(1)[0][0] if present else majority
        no = absent.most_common(1)[0][0] if absent else majority
        right = sum(e.label == (yes if word in words(e.text) else no) for e in test)
        best = max(best, right / len(test))
    return best


def naive_bayes_accuracy(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Accuracy of a bag of words: all words together decide."""
    prior = Counter(e.label for e in train)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        counts[example.label].update(words(example.text))
    size = len({w for c in counts.values() for w in c})

    def score(label: str, text: str) -> float:
        total = sum(counts[label].values()) + size
        return math.log(prior[label]) + sum(
            math.log((counts[label][w] + 1) / total) for w in words(text)
        )

    right = sum(max(prior, key=lambda lab: score(lab, e.text)) == e.label for e in test)
    return right / len(test)


@pytest.mark.parametrize("name", list(SYNTHETIC_SPECS))
def test_labels_follow_from_several_words_and_from_no_single_one(
    sets: dict[str, CheckedSet], name: str
) -> None:
    train, test = sets[name].examples["train"], sets[name].examples["test"]
    assert naive_bayes_accuracy(train, test) >= 0.95
    assert best_single_word_accuracy(train[:150], test) <= 0.75
