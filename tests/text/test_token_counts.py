"""Token counts: the process of large sets answers as this one does, and never outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.token_counts import Asked, TokenLengths, find_tokenizer, token_counter
from tests.data.byte_tokenizer import save_byte_tokenizer

QUESTION = "Which mood?\nStatement: "
# With a lone surrogate, as broken files may hold.
POSTS = [(QUESTION, "tea " * n) for n in range(1, 40)] + [(QUESTION, "broken \ud800"), ("Or?", "x")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer without merges: one token for every byte."""
    folder = tmp_path_factory.mktemp("model")
    save_byte_tokenizer(folder)
    return str(folder)


def frame(model: str) -> int:
    """The tokens of a prompt without a post."""
    return len(render_prompt(find_tokenizer(model), QUESTION, "", 10_000).ids)


def test_a_process_of_its_own_counts_the_same(model: str) -> None:
    limit = frame(model) + 100
    asked = Asked({("Mood", "train"): POSTS, ("Mood", "test"): POSTS[:2]}, limit)
    answers = {}
    for apart in (False, True):
        with token_counter(model, apart) as count:
            answers[apart] = list(count(asked))
    assert answers[True] == answers[False]
    reason, lengths = answers[True]
    assert reason is None
    # "tea " n times is 4 n - 1 bytes, for blanks at the ends are dropped: 26 and more do not fit.
    assert lengths["Mood", "train"].truncated == 39 - 25
    assert lengths["Mood", "test"] == TokenLengths((7, 7, 7, 7), 0)


def test_the_process_does_without_pytorch(model: str, tmp_path: Path) -> None:
    """A module of that name would be imported by transformers; this one would end the process."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    program = (
        "import sys; from mental_r1_jax.text.token_counts import *\n"
        "if __name__ == '__main__':\n"
        "    with token_counter(sys.argv[1], True) as count:\n"
        "        print(list(count(Asked({('Mood', 'train'): [('Or?', 'tea')]}, 9999))))\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    run = subprocess.run(
        [sys.executable, file, model],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert run.returncode == 0 and "truncated=0" in run.stdout, run.stderr


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_wrong_is_told_before_anything_is_counted(model: str, apart: bool) -> None:
    with token_counter("no/such-model", apart) as count:
        reason, lengths = count(Asked({("Mood", "train"): POSTS}, 10_000))
    assert isinstance(reason, str) and reason and lengths == {}
    with token_counter(model, apart) as count, pytest.raises(UserError, match="the set 'Mood'"):
        next(count(Asked({("Mood", "train"): POSTS}, len(GRAMMAR.prefill))))


def test_an_end_from_outside_is_an_error_and_none_is_left_over(model: str) -> None:
    with token_counter(model, apart=True) as count:
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(UserError, match="counts tokens has ended"):
            next(count(Asked({("Mood", "train"): POSTS}, 10_000)))
    with pytest.raises(ZeroDivisionError), token_counter(model, apart=True):
        (process,) = multiprocessing.active_children()
        raise ZeroDivisionError
    assert not process.is_alive()


def test_the_process_ends_when_its_command_is_killed(model: str, tmp_path: Path) -> None:
    """By SIGKILL, after which the command can end nobody; Ctrl-C alone does not end the process."""
    file = tmp_path / "program.py"
    file.write_text(
        "import multiprocessing, sys, time; from mental_r1_jax.text.token_counts import *\n"
        "if __name__ == '__main__':\n"
        "    with token_counter(sys.argv[1], True) as count:\n"
        "        next(count(Asked({}, 9999)))\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, file, model], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not _runs(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} is still there after a minute")


def _runs(pid: int) -> bool:
    """Whether the process is there and not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
