"""What is kept of unfinished work: a sound beginning, for the same work and its owner only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.prediction import journal
from mental_r1_jax.prediction.journal import Journal

FACTS = {"posts": "ab", "votes": 3, "question": ["Mood", "Is it?"]}
BATCHES = [[{"row": 1, "label": "é\u2028"}, {"row": 0, "label": None}], [{"row": 2}]]


def filled(path: Path) -> bytes:
    with Journal(path) as one:
        for batch in BATCHES:
            one.append(batch)
        assert (one.batches, one.rows) == (2, 3)
    return path.read_bytes()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_kill_after_any_byte_leaves_a_beginning(tmp_path: Path, capsys) -> None:
    """The file ends as the uninterrupted one, byte for byte, wherever it was cut off."""
    whole = filled(tmp_path / "whole")
    first = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:size])
        with Journal(path) as one:
            sound = sum(size >= end for end in (first, len(whole)))
            assert one.batches == sound
            warned = "are not whole" in capsys.readouterr().err
            assert warned == (size not in (0, first, len(whole)))
            for batch in BATCHES[sound:]:
                one.append(batch)
            assert list(one.in_order()) == [BATCHES[0][1], BATCHES[0][0], BATCHES[1][0]]
        assert path.read_bytes() == whole
    assert mode(tmp_path / "whole") == 0o600


def test_nothing_behind_a_damaged_line_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    whole = filled(path)
    for place in range(whole.index(b"\n")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with Journal(path) as one:
            assert one.batches == 0
        assert path.read_bytes() == b""


def test_a_journal_that_was_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    whole = filled(path)
    with Journal(path) as one:
        path.write_bytes(whole[: whole.index(b"\n") + 1])
        with pytest.raises(UserError, match="rows 0 to 2, each once.*2 of them"):
            list(one.in_order())


def test_work_belongs_to_its_facts_and_ends_as_one_file(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert not journal.check_facts(output, FACTS)
    answers = journal.begin(output, FACTS)
    filled(answers)
    assert mode(answers.parent) == 0o700 and mode(answers.parent / "manifest.json") == 0o600
    assert not journal.check_facts(output, FACTS)
    assert not journal.check_facts(output, {"votes": 3})  # as far as they are known
    with pytest.raises(UserError, match="unfinished work.*differ in: votes.*nothing was touched"):
        journal.check_facts(output, FACTS | {"votes": 4})
    assert journal.begin(output, FACTS) == answers and answers.exists()

    (answers.parent / journal.STAGED_FILE).write_bytes(b"{}\n")
    (answers.parent / "run.lock.0a").write_text("{}")  # of a process that was killed
    journal.end(output, FACTS, {"posts": 3})
    journal.remove_unfinished(output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]
    assert mode(tmp_path / "out.jsonl.manifest.json") == 0o600
    assert journal.check_facts(output, FACTS)
    with pytest.raises(UserError, match="is there.*differ in: posts, new"):
        journal.check_facts(output, FACTS | {"posts": "cd", "new": None})
    output.write_bytes(b"{ }\n")
    with pytest.raises(UserError, match="another content"):
        journal.check_facts(output, FACTS)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("years of work")
    with pytest.raises(UserError, match="no manifest of ours beside it"):
        journal.check_facts(output, FACTS)
    output.unlink()
    output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no manifest of ours"):
        journal.check_facts(output, FACTS)
    output.unlink()
    folder = journal.unfinished_folder(output)
    folder.mkdir()
    (folder / "answers.jsonl").write_text("mine")
    with pytest.raises(UserError, match="no manifest of ours in it"):
        journal.check_facts(output, FACTS)
    (folder / "answers.jsonl").unlink()
    (folder / "thesis.txt").write_text("mine")
    journal.begin(output, FACTS)
    (folder / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(UserError):
        journal.check_facts(output, FACTS)
    journal.remove_unfinished(output)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
