"""Rows of comma- or tab-separated files; every fault keeps its line, and reading goes on after it.

1. Read the header: the columns that are needed must be there, each once.
2. Scan the records. After a lost quote reading goes on at the next record that looks like a row.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mental_r1_jax.data.csv_scanner import Cells, QuoteFault, Record, scan_records
from mental_r1_jax.data.records import Problem, shown_names
from mental_r1_jax.data.rows import FileRow, Oddity


@dataclass(frozen=True)
class KeyColumns:
    """What the reader must know of the columns.

    Attributes:
        texts: those that hold the post.
        label: that of the label.
        question: that of the question asked about the post, if there is one.
        question_needed: whether a file without it is refused.
        others: further ones that must be there.
        is_label: whether a cell of the column `label` holds a label of the set.
    """

    texts: tuple[str, ...]
    label: str
    question: str | None
    question_needed: bool
    others: tuple[str, ...]
    is_label: Callable[[str], bool]


def header_of(text: str, delimiter: str) -> Cells:
    """Return the cells of the first record; none where it cannot be read."""
    first = next(scan_records(text, lambda _: True, delimiter), None)
    return first.cells if isinstance(first, Record) else ()


def read_delimited(
    file: str, text: str, keys: KeyColumns, delimiter: str = ","
) -> Iterator[FileRow | Problem | Oddity]:
    """Yield the rows of a file, and what is wrong with those that cannot be read."""
    yield from _Reading(file, keys, delimiter).events(text)


class _Reading:
    """The reading of one file."""

    def __init__(self, file: str, keys: KeyColumns, delimiter: str) -> None:
        self._file = file
        self._keys = keys
        self._delimiter = delimiter
        self._header: Cells = ()
        self._questions: set[str] = set()

    def events(self, text: str) -> Iterator[FileRow | Problem | Oddity]:
        """Scan `text`."""
        rows = 0
        for event in scan_records(text, self._looks_like_row, self._delimiter):
            if not self._header:
                problems = list(self._take_header(event))
                yield from problems
                if any(isinstance(problem, Problem) for problem in problems):
                    return
                continue
            rows += 1
            yield from self._fault(event) if isinstance(event, QuoteFault) else self._row(event)
        if not self._header:
            keys = self._keys
            names = [*keys.texts, keys.label, *([keys.question] if keys.question else [])]
            yield self._problem(None, "", "an empty file", f"columns {', '.join(names)}", "no rows")
        elif rows == 0:
            expected = "at least one labelled post"
            yield self._problem(None, "", "a header without rows", expected, "no rows")

    def _take_header(self, event: Record | QuoteFault) -> Iterator[Problem | Oddity]:
        """Read the column names; a `Problem` where the rows cannot be understood with them."""
        if isinstance(event, QuoteFault):
            value = "a quote without its mate"
            yield self._problem(event.line, "", value, "column names", "quotes")
            return
        keys, self._header = self._keys, event.cells
        counts = Counter(event.cells)
        found = f"columns {shown_names(event.cells)}"
        wanted = [*keys.texts, keys.label, *keys.others]
        if keys.question is not None and keys.question_needed:
            wanted.append(keys.question)
        for column in wanted:
            if counts[column] == 0:
                near = difflib.get_close_matches(column, event.cells, n=1)
                hint = f" (is {near[0]!r} meant?)" if near else ""
                expected = f"a column {column!r}{hint}"
                yield self._problem(event.line, column, found, expected, "missing column")
        of_question = [] if keys.question is None else [keys.question]
        for column in dict.fromkeys([*keys.texts, keys.label, *of_question, *keys.others]):
            if counts[column] > 1:
                yield self._problem(event.line, column, found, "it once", "repeated column")
        if keys.question is not None and not keys.question_needed and not counts[keys.question]:
            expected = f"a column {keys.question!r}; the set's own question is used instead"
            yield Oddity(self._problem(event.line, keys.question, "none", expected, "no question"))

    def _row(self, record: Record) -> Iterator[FileRow | Problem | Oddity]:
        """One record as a row, unless it has too many or too few cells."""
        cells = record.cells
        if len(cells) != len(self._header):
            expected = f"{len(self._header)} cells; quote a text with commas or line breaks"
            kind = "wrong number of cells"
            yield self._problem(record.line, "", f"{len(cells)} cells", expected, kind)
            return
        texts, question = self._texts(cells), self._question(cells)
        right = self._is_labelled(cells) and any(text.strip() for text in texts)
        if right and (question is None or question.strip()):
            self._questions.add(question or "")
            yield from self._swallowed_row(record.line, texts)
        yield FileRow(record.line, dict(zip(self._header, cells, strict=True)))

    def _swallowed_row(self, line: int, texts: tuple[str, ...]) -> Iterator[Problem | Oddity]:
        """Report a text with a whole row inside.

        Two lost quotes, one that closes a cell and one that opens a later cell, leave well-formed
        CSV with everything between them in one cell. Without a question column the sign is weak,
        for a post may have a line that ends in ",No", so it is a warning there.
        """
        for column, text in zip(self._keys.texts, texts, strict=True):
            lines = text.splitlines() if "\n" in text else ()
            inside = (tuple(part.split(self._delimiter)) for part in lines)
            if not any(
                self._looks_like_row(cells) and (self._question(cells) or "") in self._questions
                for cells in inside
            ):
                continue
            certain = self._keys.question in self._header
            problem = self._problem(
                line,
                column,
                "a text with a whole row inside",
                "a pair of quotes around each cell; two of them seem to be lost",
                "unbalanced quotes" if certain else "row inside a text",
            )
            yield problem if certain else Oddity(problem)

    def _looks_like_row(self, cells: Cells) -> bool:
        """Whether a record read after a lost quote is a row rather than the inside of a post."""
        if not self._header:
            return True
        if len(cells) != len(self._header):
            return False
        question = self._question(cells)
        return self._is_labelled(cells) or (question is not None and question in self._questions)

    def _is_labelled(self, cells: Cells) -> bool:
        return self._keys.is_label(cells[self._header.index(self._keys.label)])

    def _texts(self, cells: Cells) -> tuple[str, ...]:
        return tuple(cells[self._header.index(column)] for column in self._keys.texts)

    def _question(self, cells: Cells) -> str | None:
        if self._keys.question is None or self._keys.question not in self._header:
            return None
        return cells[self._header.index(self._keys.question)]

    def _fault(self, fault: QuoteFault) -> Iterator[Problem]:
        column = self._header[fault.cell] if fault.cell < len(self._header) else ""
        last = fault.resume_line - 1
        unread = f"lines {fault.line} to {last}" if last > fault.line else f"line {fault.line}"
        yield self._problem(
            fault.line,
            column,
            f"a quote without its mate, {unread} could not be checked",
            'a pair of quotes around the cell, with "" for a quote inside it',
            "unbalanced quotes",
        )

    def _problem(
        self, line: int | None, column: str, value: str, expected: str, kind: str
    ) -> Problem:
        return Problem(self._file, line, column, value, expected, kind)
