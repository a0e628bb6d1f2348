import io
import math
import os

import pytest
from rich.console import Console

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.console.progress import Progress, batch_table, is_interactive

METRICS = {
    "reward": 0.25,
    "accuracy": 0.5,
    "tokens_per_second": 1234.5,
    # Alphabetical, as a jitted function returns them; shown in the order of the stages.
    **{f"entropy/stage/{name}": STAGE_NAMES.index(name) + 0.5 for name in sorted(STAGE_NAMES)},
}


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain(total=10, **options):
    file, clock = io.StringIO(), Clock()
    progress = Progress(total, console=Console(file=file), clock=clock, **options)
    return progress, clock, file


def test_plain_line_shows_everything():
    progress, clock, file = plain()
    with progress:
        clock.now = 60.0
        progress.update(1, METRICS)
    assert file.getvalue() == (
        "step 1/10 | reward 0.250 | accuracy 50.0% | stage entropies 0.50 1.50 2.50 3.50 4.50"
        " | tokens/s 1,234 | ETA 0:09:00\n"
    )


def test_run_without_rewards_shows_its_loss():
    progress, clock, file = plain()
    with progress:
        clock.now = 1.0
        progress.update(1, {"loss": 0.12345})
    assert file.getvalue() == "step 1/10 | loss 0.1235 | ETA 0:00:09\n"


def test_broken_numbers_are_shown():
    progress, _, file = plain()
    with progress:
        progress.update(1, {"reward": math.nan, "loss": math.inf})
    assert "reward nan" in file.getvalue() and "loss inf" in file.getvalue()


@pytest.mark.parametrize("colour", [None, "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_control_characters_without_a_terminal(monkeypatch, colour):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    if colour:
        monkeypatch.setenv(colour, "1")
    progress, _, file = plain()
    with progress:
        progress.phase("sampling")
        progress.update(1, METRICS)
        progress.print("a [bold]literal[/bold] line " + "x" * 100)
    text = file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert text.splitlines()[-1] == "a [bold]literal[/bold] line " + "x" * 100


def test_phases_are_announced_while_steps_are_slow_or_none_is_done():
    progress, clock, file = plain(total=3)
    with progress:
        progress.phase("sampling")
        clock.now = 30.0
        progress.update(1, {})
        progress.phase("training")
        clock.now = 30.5
        progress.update(2, {})
        progress.phase("validating")
    lines = file.getvalue().splitlines()
    assert lines[0] == "after step 0/3: sampling ..."
    assert lines[2] == "after step 1/3: training ..."
    assert not any("validating" in line for line in lines)


def test_time_left_ignores_the_compilation_in_the_first_step():
    progress, clock, _ = plain(total=102)
    assert progress.seconds_left() is None
    for step, now in ((1, 500.0), (2, 502.0)):
        clock.now = now
        progress.update(step, {})
    assert progress.seconds_left() == 200.0


def test_time_left_after_a_resume_counts_only_this_process():
    progress, clock, _ = plain(total=100, start=90)
    clock.now = 4.0
    progress.update(91, {})
    assert progress.seconds_left() == 36.0


def test_terminal_gets_a_live_panel(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    console = Console(file=file, width=120, force_terminal=True)
    with Progress(10, console=console) as progress:
        progress.phase("sampling")
        progress.update(3, METRICS)
        progress.print("above [the] panel")
    text = file.getvalue()
    assert "\x1b[" in text
    assert "step 3/10" in text and "0.50 1.50 2.50 3.50 4.50" in text
    assert "above [the] panel" in text


def test_cursor_is_given_back_after_an_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    with (
        pytest.raises(RuntimeError, match="boom"),
        Progress(10, console=Console(file=file, force_terminal=True)),
    ):
        raise RuntimeError("boom")
    assert file.getvalue().rstrip("\n").endswith("\x1b[?25h")
    assert "stopped" in file.getvalue()


def test_what_counts_as_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert is_interactive(Console(file=Terminal()))
    assert not is_interactive(Console(file=io.StringIO(), force_terminal=True))
    assert not is_interactive(Console(file=Terminal(), _environ=os.environ | {"TERM": "dumb"}))


def test_batch_table_keeps_the_order_and_takes_text_literally():
    file = io.StringIO()
    rows = [("prompts a step", "128"), ("completions a prompt", "[4]")]
    Console(file=file).print(batch_table(rows))
    lines = [line for line in file.getvalue().splitlines() if "step" in line or "prompt" in line]
    assert "128" in lines[0] and "[4]" in lines[1]
