"""A call waits for its own compilation alone, raises its error, and compiles nothing again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mental_r1_jax.programs.program import Program, compile_in_background

SECONDS = 60.0
ARGUMENT = jax.ShapeDtypeStruct((3,), jnp.float32)
NUMBERS = np.arange(3, dtype=np.float32)


def doubling() -> Program:
    """A program that no other test has compiled."""
    return Program(jax.jit(lambda x: 2 * x))


class Gate:
    """Arguments of programs, given in the thread once the gate of that program is open."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.open = {id(program): threading.Event() for program in programs}
        self.asked: list[Program] = []

    def __call__(self, program: Program) -> list[tuple[Any, ...]]:
        self.asked.append(program)
        assert self.open[id(program)].wait(SECONDS)
        return [(ARGUMENT,)]


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one at every compilation in this process."""
    found: list[str] = []
    # Runs of earlier tests may have ended while their programs were still being compiled.
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join()

    def listen(event: str, _: float, **__: Any) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def call_in_thread(program: Program, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a call; its result comes into the list."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(program(*arguments)), daemon=True)
    thread.start()
    return thread, results


def test_starting_to_compile_does_not_wait() -> None:
    program = doubling()
    gate = Gate([program])
    compile_in_background([program], gate)  # would hang, if it waited
    gate.open[id(program)].set()
    np.testing.assert_array_equal(program(NUMBERS), 2 * NUMBERS)


def test_a_call_waits_for_its_own_compilation() -> None:
    program = doubling()
    gate = Gate([program])
    compile_in_background([program], gate)
    thread, results = call_in_thread(program, NUMBERS)
    thread.join(0.2)
    assert thread.is_alive() and results == []
    gate.open[id(program)].set()
    thread.join(SECONDS)
    np.testing.assert_array_equal(results[0], 2 * NUMBERS)


def test_a_call_does_not_wait_for_the_compilation_of_another_program() -> None:
    first, second, third = programs = [doubling() for _ in range(3)]
    gate = Gate(programs)
    compile_in_background(programs, gate)
    gate.open[id(first)].set()
    np.testing.assert_array_equal(first(NUMBERS), 2 * NUMBERS)  # while the second is held up
    assert not gate.open[id(second)].is_set()
    gate.open[id(second)].set()
    np.testing.assert_array_equal(second(NUMBERS), 2 * NUMBERS)
    gate.open[id(third)].set()
    np.testing.assert_array_equal(third(NUMBERS), 2 * NUMBERS)
    assert gate.asked == programs, "compiled in the order given"


def test_an_error_of_the_compilation_is_raised_at_the_call_of_that_program() -> None:
    def refuse(x: jax.Array) -> jax.Array:
        raise TypeError("cannot be traced")

    broken, sound = Program(jax.jit(refuse)), doubling()
    compile_in_background([broken, sound], lambda program: [(ARGUMENT,)])
    np.testing.assert_array_equal(sound(NUMBERS), 2 * NUMBERS)
    with pytest.raises(TypeError, match="cannot be traced"):
        broken(NUMBERS)


def test_an_error_in_finding_the_arguments_is_raised_at_the_call() -> None:
    def calls(program: Program) -> Any:
        raise ValueError("no shapes")

    program = doubling()
    compile_in_background([program], calls)
    with pytest.raises(ValueError, match="no shapes"):
        program(NUMBERS)


def test_nothing_is_compiled_twice(compilations: list[str]) -> None:
    """Once in the background for each shape, and not again at the calls."""
    program = doubling()
    shapes = [(jax.ShapeDtypeStruct((n,), jnp.float32),) for n in (3, 5)]
    arguments = [np.arange(n, dtype=np.float32) for n in (3, 5)]
    compile_in_background([program], lambda program: shapes)
    for argument in [*arguments, *arguments]:
        np.testing.assert_array_equal(program(argument), 2 * argument)
    assert len(compilations) == 2
    assert program.compiled() == 2


def test_without_a_background_compilation_the_first_call_compiles(compilations: list[str]) -> None:
    program = doubling()
    assert program.compiled() == 0
    for _ in range(2):
        np.testing.assert_array_equal(program(NUMBERS), 2 * NUMBERS)
    assert program.compiled() == len(compilations) == 1
