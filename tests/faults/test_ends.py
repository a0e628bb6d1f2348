"""Signals end a command with one line and 128 + their number; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mental_r1_jax.runs.run_folder import StopSignal, exit_if_stopped

NUMBERS = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_the_first_signal_is_served_after_the_step(number: signal.Signals, capfd) -> None:
    before = {one: signal.getsignal(one) for one in NUMBERS}
    with StopSignal() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), number)
        assert stop.reached(2)
        # From now on the system ends the process, whatever it is doing.
        assert all(signal.getsignal(one) == signal.SIG_DFL for one in NUMBERS)
    assert {one: signal.getsignal(one) for one in NUMBERS} == before
    assert capfd.readouterr().err == f"{number.name}: stopping after this step\n"
    with pytest.raises(SystemExit) as ended:
        exit_if_stopped(stop)
    assert ended.value.code == NUMBERS[number]


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.reached(1)
    finally:
        signal.signal(signal.SIGHUP, before)


# Instead of the command line: says that it runs, and spins, also while it cleans up.
SPIN = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
cli = types.ModuleType("mental_r1_jax.cli")
def main():
    try:
        print("running", flush=True)
        time.sleep(60)
    finally:
        if sys.argv[1] == "2":
            print("cleaning", flush=True)
            time.sleep(60)
cli.main = main
sys.modules["mental_r1_jax.cli"] = cli
from mental_r1_jax.__main__ import main
main()
"""


def started(program: str, argument: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, argument]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_one_line_and_a_second_one_ends_at_once(times: int) -> None:
    with started(SPIN, str(times)) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        if times == 2:
            assert process.stdout.readline() == "cleaning\n"
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    # What a shell reports as 130; the system's own action has no text at all.
    assert (process.returncode, errors) == ((130, "interrupted\n") if times == 1 else (-2, ""))


# A command line that is done, and a thread that the interpreter waits for at its end.
LINGER = """
import signal, sys, threading, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
cli = types.ModuleType("mental_r1_jax.cli")
def linger():
    threading.main_thread().join()
    print("waiting", flush=True)
    time.sleep(60)
def main():
    threading.Thread(target=linger).start()
    if sys.argv[1] == "exit":
        sys.exit(3)
    return 0
cli.main = main
sys.modules["mental_r1_jax.cli"] = cli
from mental_r1_jax.__main__ import main
main()
"""


@pytest.mark.parametrize("way", ["return", "exit"])
def test_ctrl_c_while_the_interpreter_ends_prints_no_traceback(way: str) -> None:
    with started(LINGER, way) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-2, "")
