"""`mental-r1 predict` with answers from a script: what comes out, and what a kill leaves."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pyarrow.parquet as pq
import pytest

from mental_r1_jax.cli import main
from mental_r1_jax.data.benchmarks import spec_for
from mental_r1_jax.jobs import predict
from mental_r1_jax.prediction import bulk, journal
from mental_r1_jax.text.stages import GRAMMAR
from tests.every_field.loop import one_device
from tests.every_field.toys import STAGE_TEXTS

SET = "Stress-Synthetic"
LABELS = spec_for(SET).labels
POSTS = ["tea " * (n % 7) for n in range(50)]
COUNT = 50
SECRET = "the writer told nobody"

# One recipe for all commands; its set is given by name.
KEYS = ("rollout.max_prompt_length=300", "rollout.max_completion_length=60")
KEYS += ("evaluate.batch_size=4", "run.compilation_cache=null")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it, but for closing files."""


@pytest.fixture
def command(tiny: Path, tmp_path: Path, monkeypatch, script) -> Callable[..., int]:
    """Run the command line on posts.csv: `command("out.jsonl", "--id", "who")`."""
    monkeypatch.setattr(predict, "open_mesh", lambda *a, **k: one_device())
    monkeypatch.setattr(predict, "load_weights", lambda *a, **k: {})
    monkeypatch.setattr(predict, "fingerprint", lambda params: "weights")
    monkeypatch.setattr(bulk, "WINDOW_BATCHES", 3)
    monkeypatch.chdir(tmp_path)
    script(lambda row, vote: GRAMMAR.render(STAGE_TEXTS, LABELS[row % 2]))
    with Path("posts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("who", "text"), *((f"w{n}", t) for n, t in enumerate(POSTS))])

    def run(output: str, *arguments: str, posts: str = "posts.csv", model: Path = tiny) -> int:
        named = [] if "--set" in arguments else ["--set", SET]
        return main(["predict", str(model), posts, output, *named, *arguments, *KEYS])

    return run


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def mistake(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error that was printed."""
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors
    return errors


def test_every_post_has_one_line_in_its_order(command, capsys) -> None:
    assert command("out.jsonl", "--id", "who") == 0
    records = lines("out.jsonl")
    assert [(r["row"], r["id"]) for r in records] == [(n, f"w{n}") for n in range(COUNT)]
    for row, record in enumerate(records):
        assert record["label"] == (LABELS[row % 2] if POSTS[row].strip() else None)
        assert record["flags"] == ([] if POSTS[row].strip() else ["empty"])
    told = capsys.readouterr().out
    assert f"{COUNT} posts, 8 abstained, 8 empty" in told and "50/50 posts" in told
    names = ["out.jsonl", "out.jsonl.manifest.json", "posts.csv"]
    assert sorted(path.name for path in Path().iterdir()) == names
    assert {Path(name).stat().st_mode & 0o777 for name in names[:2]} == {0o600}
    assert all("text" not in record for record in records)


def test_the_same_command_again_does_nothing_and_another_is_refused(command, capsys) -> None:
    assert command("out.jsonl") == 0
    before = Path("out.jsonl").stat().st_mtime_ns
    assert command("out.jsonl") == 0
    assert "finished already" in capsys.readouterr().out
    for arguments in (["--id", "who"], ["--include-text"], ["evaluate.num_votes=3"]):
        assert command("out.jsonl", *arguments) == 2
        assert "belongs to something else" in mistake(capsys)
    with Path("posts.csv").open("a") as file:
        file.write("w99,tea\n")
    assert command("out.jsonl") == 2
    assert "differ in: posts" in mistake(capsys)
    assert Path("out.jsonl").stat().st_mtime_ns == before


def test_parquet_and_json_lines_hold_the_same(command) -> None:
    for options in ([], ["--id", "who", "--include-text", "evaluate.num_votes=3"]):
        assert command("out.jsonl", *options) == command("out.parquet", *options) == 0
        assert pq.read_table("out.parquet").to_pylist() == lines("out.jsonl")
        for path in list(Path().glob("out.*")):
            path.unlink()


def test_ids_are_numbers_where_all_are(command) -> None:
    rows = [{"text": "tea", "n": 7}, {"text": "tea", "n": None}, {"text": "\ud800", "n": 2**40}]
    Path("posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for output in ("out.jsonl", "out.parquet"):
        assert command(output, "--id", "n", "--include-text", posts="posts.jsonl") == 0
    assert [record["id"] for record in lines("out.jsonl")] == [7, None, 2**40]
    table = pq.read_table("out.parquet").to_pylist()
    assert table == lines("out.jsonl") and table[2]["text"] == "\ufffd"
    Path("posts.jsonl").write_text('{"text":"tea","n":7}\n{"text":"tea","n":"\\ud800"}\n')
    for output in ("b.jsonl", "b.parquet"):
        assert command(output, "--id", "n", posts="posts.jsonl") == 0
    assert [r["id"] for r in lines("b.jsonl")] == ["7", "\ufffd"]
    assert pq.read_table("b.parquet").to_pylist() == lines("b.jsonl")


def kill_in(monkeypatch: pytest.MonkeyPatch, batches: int, torn: int) -> None:
    """Let the process die in batch `batches`, when `torn` bytes of its line are on the disk."""
    append, appended = journal.Journal.append, []

    def dying(self: journal.Journal, records: Any) -> None:
        appended.append(1)
        if len(appended) == batches:
            os.write(self._file, b"0123456789abcdef ["[:torn])
            raise Killed
        append(self, records)

    monkeypatch.setattr(journal.Journal, "append", dying)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_killed_three_times_it_ends_as_if_undisturbed(
    command, script, monkeypatch, suffix: str
) -> None:
    assert command(f"whole{suffix}", "--id", "who") == 0
    asked = script(lambda row, vote: GRAMMAR.render(STAGE_TEXTS, LABELS[row % 2]))
    for batches, torn in ((1, 0), (3, 5), (4, 0)):
        with monkeypatch.context() as patch:
            kill_in(patch, batches, torn)
            with pytest.raises(Killed):
                command(f"out{suffix}", "--id", "who")
        assert not Path(f"out{suffix}").exists()
    kept = Path(f"out{suffix}.unfinished/answers.jsonl").read_bytes()
    assert kept.count(b"\n") == len(kept.splitlines()) == 0 + 2 + 3
    assert command(f"out{suffix}", "--id", "who") == 0
    assert Path(f"out{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    assert not Path(f"out{suffix}.unfinished").exists()
    # Rows that were answered twice: those of the batches under way in a kill, and no others.
    times = [row for _, rows, _ in asked.asked for row in set(rows)]
    assert len(times) - len(set(times)) <= 3 * 2 * 4


def test_a_kill_while_the_output_is_put_in_place(command, monkeypatch, capsys) -> None:
    """Behind the manifest, and behind the output: what is missing is made up for."""
    for broken in ("end", "remove_unfinished"):
        with monkeypatch.context() as patch:
            patch.setattr(journal, broken, lambda *a: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                command("out.jsonl")
        assert Path("out.jsonl.unfinished").is_dir()
        assert Path("out.jsonl").exists() == (broken == "remove_unfinished")
    whole = Path("out.jsonl").read_bytes()
    assert command("out.jsonl") == 0
    assert not Path("out.jsonl.unfinished").exists() and Path("out.jsonl").read_bytes() == whole


def test_unfinished_work_is_not_mixed_with_other_work(command, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        kill_in(patch, 3, 0)
        with pytest.raises(Killed):
            command("out.jsonl")
    kept = Path("out.jsonl.unfinished/answers.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(predict, "fingerprint", lambda params: "other weights")
        assert command("out.jsonl") == 2
        assert "differ in: weights" in mistake(capsys)
    assert command("out.jsonl", "run.seed=3", "rollout.temperature=0.5") == 2
    assert "differ in: rollout, seed" in mistake(capsys)
    assert Path("out.jsonl.unfinished/answers.jsonl").read_bytes() == kept
    assert command("out.jsonl") == 0


def test_a_full_disk_is_one_error_and_the_work_goes_on_afterwards(
    command, monkeypatch, capsys
) -> None:
    assert command("whole.jsonl") == 0
    write, calls = os.write, []

    def full(file: int, line: bytes) -> int:
        calls.append(1)
        if len(calls) == 3:
            write(file, line[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, line)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert command("out.jsonl") == 2
    assert "make room, then give the same command again" in mistake(capsys)
    assert not Path("out.jsonl").exists()
    assert command("out.jsonl") == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_posts_that_change_under_the_work_are_refused(command, monkeypatch, capsys) -> None:
    append = journal.Journal.append

    def changing(self: journal.Journal, records: Any) -> None:
        append(self, records)
        Path("posts.csv").write_text("who,text\nw0,coffee\n")

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", changing)
        assert command("out.jsonl") == 2
    assert "has changed while it was read" in mistake(capsys)
    assert not Path("out.jsonl").exists()


def test_what_is_wrong_is_said_before_a_model_is_opened(command, monkeypatch, capsys) -> None:
    monkeypatch.setattr(predict, "open_model", None)
    Path("theirs.jsonl").write_text("years of work")
    Path("broken.jsonl").write_text('{"text": "SECRET}\n'.replace("SECRET", SECRET))
    for arguments, expected in (
        (["out.txt"], "cannot tell what kind of file out.txt is to be"),
        (["none/out.jsonl"], "the folder of none/out.jsonl is not there"),
        (["posts.csv/out.jsonl"], "the folder of posts.csv/out.jsonl is not there"),
        (["x" * 240 + ".jsonl"], "choose a shorter path"),  # too long for what stands beside it
        (["theirs.jsonl"], "belongs to something else"),
        (["out.jsonl", "--column", "post"], "has no column 'post'"),
        (["out.jsonl", "--id", "name"], "has no column 'name'"),
        (["out.jsonl", "--set", "Mood"], "There is no data set called 'Mood'"),
        (["out.jsonl", "--min-confidence", "0.7"], "--min-confidence needs votes"),
        (["out.jsonl", "--min-confidence", "7"], "above 0, up to 1"),
    ):
        assert command(*arguments) == 2
        assert expected in mistake(capsys)
    assert command("out.jsonl", posts="broken.jsonl") == 2
    message = mistake(capsys)
    assert "line 1: not JSON" in message and SECRET not in message
    assert Path("theirs.jsonl").read_text() == "years of work"
    assert not list(Path().glob("out*"))


def test_several_processes_are_refused(command, monkeypatch, capsys) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
        command("out.jsonl")
    assert "predict runs in one process" in mistake(capsys)


def test_where_the_recipe_comes_from(command, tiny: Path, tmp_path: Path, capsys) -> None:
    """Of a model folder: the defaults or `--recipe`; nothing may be left open."""
    assert main(["predict", str(tiny), "posts.csv", "out.jsonl", *KEYS]) == 2
    assert "name a set with --set, or a recipe with --recipe" in mistake(capsys)
    sets = "{sets: [Stress-Synthetic, Depression-Synthetic]}"
    Path("mine.yaml").write_text(
        f"model: {{path: {tiny}}}\ndata: {sets}\nrun: {{output_dir: run}}\n"
    )
    recipe = ["--recipe", "mine.yaml"]
    assert main(["predict", str(tiny), "posts.csv", "out.jsonl", *recipe, *KEYS]) == 2
    assert "Stress-Synthetic, Depression-Synthetic" in mistake(capsys)
    assert command("out.jsonl", *recipe, "--set", "Stress-Synthetic") == 0
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.yaml").write_text(
        Path("mine.yaml").read_text().replace(", Depression-Synthetic", "")
    )
    capsys.readouterr()
    assert main(["predict", str(run), "posts.csv", "b.jsonl", *KEYS]) == 2
    assert "has no config.json" in mistake(capsys)  # its recipe was read, and the model is next


def test_a_question_of_ones_own(command, capsys) -> None:
    mine = "data.custom_sets.Mine={labels: [A, B]}"
    assert command("out.jsonl", "--set", "Mine", mine) == 2
    assert "has no question of its own" in mistake(capsys)
    asked = "data.custom_sets.Mine={labels: [A, B], question: Which one}"
    assert command("out.jsonl", "--set", "Mine", asked) == 0
    assert {record["label"] for record in lines("out.jsonl")} == {None}
