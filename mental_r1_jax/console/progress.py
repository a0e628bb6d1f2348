"""What a run shows while it works: a live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.errors import visible

# In plain mode the phases of a step are announced only while steps are this slow (seconds), so
# that a slow run is never silent and a fast one does not print four lines a step.
SLOW_STEP_SECONDS = 10.0

# Metric key, name shown, format; a run shows those that it has (a cold start has no reward).
FIELDS = (
    ("reward", "reward", ".3f"),
    ("accuracy", "accuracy", ".1%"),
    ("loss", "loss", ".4f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
)
MISSING = "-"

# Columns of the output where there is no terminal to ask.
PLAIN_WIDTH = 140


class Progress:
    """Shows step, reward, accuracy, stage entropies, tokens/s and the time left.

    A context manager. Without a terminal it prints one line a step, without control characters.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        stages: Sequence[str] = STAGE_NAMES,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is shown before the context is entered.

        Args:
            total: steps of the whole run.
            start: steps done before this process (on resume).
            stages: names of the grammar's, in order.
            console: where to show; by default standard output.
            clock: seconds; replaced in tests.
        """
        self._console = console or open_console()
        self._total = total
        self._step = start
        self._stages = stages
        self._metrics: dict[str, float | int] = {}
        self._phase = "starting"
        self._clock = clock
        self._last = clock()
        self._seconds: deque[float] = deque(maxlen=20)
        self._steps_timed = 0
        self._spinner = Spinner("dots")  # one for all refreshes: it keeps its own time
        self._live: Live | None = None
        if is_interactive(self._console):
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4
            )

    def __enter__(self) -> Progress:
        """Start the display and the clock of the first step."""
        self._last = self._clock()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._live is not None:
            self._phase = "stopped" if kind else "done"
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what is happening now, such as `sampling`, `training` or `validating`."""
        self._phase = name
        slow = not self._seconds or self._seconds[-1] >= SLOW_STEP_SECONDS
        if self._live is None and slow:
            self._line(f"after step {self._step}/{self._total}: {name} ...")

    def update(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Show that `step` (counted from 1) is done, with its metrics."""
        now = self._clock()
        self._steps_timed += 1
        if self._steps_timed == 2:
            # The first step compiles, so it says nothing about the time of the others.
            self._seconds.clear()
        self._seconds.append((now - self._last) / max(1, step - self._step))
        self._last, self._step = now, step
        self._metrics = dict(metrics)
        if self._live is None:
            parts = [f"step {step}/{self._total}"]
            parts += [f"{name} {value}" for name, value in self._fields()]
            self._line(" | ".join(parts))

    def print(self, renderable: RenderableType) -> None:
        """Print above the live panel; text is taken literally, and not wrapped in plain mode."""
        if not isinstance(renderable, str):
            self._console.print(renderable)
        elif self._live is None:
            self._line(renderable)
        else:
            self._console.print(Text(renderable))

    def seconds_left(self) -> float | None:
        """Estimated seconds to the last step, from the mean of up to 20 steps; None before any."""
        if not self._seconds:
            return None
        return (self._total - self._step) * sum(self._seconds) / len(self._seconds)

    def _fields(self) -> list[tuple[str, str]]:
        left = self.seconds_left()
        shown = [
            (name, _number(self._metrics[key], form))
            for key, name, form in FIELDS
            if key in self._metrics
        ]
        stages = [self._metrics.get(f"entropy/stage/{name}") for name in self._stages]
        if any(value is not None for value in stages):
            shown.insert(2, ("stage entropies", " ".join(_number(e, ".2f") for e in stages)))
        eta = MISSING if left is None else str(datetime.timedelta(seconds=round(left)))
        return [*shown, ("ETA", eta)]

    def _render(self) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            self._spinner,
            Text(f"step {self._step}/{self._total}", style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=32),
            Text(self._phase, style="cyan"),
        )
        fields = Table.grid(padding=(0, 2))
        names, values = zip(*self._fields(), strict=True)
        fields.add_row(*(Text(name, style="dim") for name in names))
        fields.add_row(*(Text(value) for value in values))
        body = Table.grid()
        body.add_row(head)
        body.add_row(fields)
        return Panel.fit(body, title="mental-r1", border_style="dim")

    def _line(self, text: str) -> None:
        # Not through the console: it wraps lines and may be told to colour even without a terminal.
        print(text, file=self._console.file, flush=True)


class _VisibleConsole(Console):
    """Writes out the control characters of what it shows: names and labels are strangers' text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of `renderable`; those that control the terminal are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def open_console() -> Console:
    """Standard output; where it is no terminal, wide enough that no table is squeezed."""
    console = _VisibleConsole()
    return console if console.is_terminal else _VisibleConsole(width=PLAIN_WIDTH)


def is_interactive(console: Console) -> bool:
    """Whether the console is a real terminal that understands control characters.

    Stricter than rich, which believes an environment that asks for colours in a file.
    """
    isatty = getattr(console.file, "isatty", lambda: False)
    return console.is_terminal and not console.is_dumb_terminal and bool(isatty())


def batch_table(rows: Sequence[tuple[str, str]], *, title: str = "batch arithmetic") -> Table:
    """The derived numbers of a run as a two-column table, in the given order."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _number(value: float | int | None, form: str) -> str:
    """`value` in the given format; NaN and infinities are shown, never hidden."""
    if value is None:
        return MISSING
    return format(value, form) if math.isfinite(value) else str(value)
