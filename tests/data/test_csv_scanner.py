"""The scanner against the standard library's reader, and on quotes that do not pair up."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mental_r1_jax.data.csv_scanner import QuoteFault, Record, scan_records
from tests.work import counted

CELL = st.text(alphabet='ab,"\n\r é', max_size=6)
TABLE = st.lists(st.lists(CELL, min_size=2, max_size=3), min_size=1, max_size=6)


def anything(cells: tuple[str, ...]) -> bool:
    return True


def three_cells(cells: tuple[str, ...]) -> bool:
    return len(cells) == 3


@given(
    TABLE,
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_well_formed_text_reads_as_the_standard_library_reads_it(
    table: list[list[str]], line_end: str, quoting: int
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=line_end, quoting=quoting).writerows(table)
    reader = csv.reader(io.StringIO(buffer.getvalue(), newline=""), strict=True)
    expected, start = [], 1
    for cells in reader:
        if cells:
            expected.append(Record(start, tuple(cells)))
        start = reader.line_num + 1
    assert list(scan_records(buffer.getvalue(), anything)) == expected
    if quoting == csv.QUOTE_ALL:  # Python 3.11 writes a lone CR without quotes otherwise
        assert [list(record.cells) for record in expected] == table


@given(st.text(alphabet='ab,"\n\r', max_size=40))
def test_any_text_is_scanned_to_its_end(text: str) -> None:
    events = list(scan_records(text, three_cells))
    lines = [event.line for event in events]
    assert lines == sorted(lines)
    assert all(e.resume_line > e.line for e in events if isinstance(e, QuoteFault))


def test_blank_lines_and_missing_final_line_end() -> None:
    assert list(scan_records("a,b\n\n\nc,d", anything)) == [
        Record(1, ("a", "b")),
        Record(4, ("c", "d")),
    ]
    assert list(scan_records("a,", anything)) == [Record(1, ("a", ""))]
    assert list(scan_records("", anything)) == []


@pytest.mark.parametrize(
    ("bad", "cell"),
    [
        ('"one,Calm,Q', 0),  # closing quote lost
        ('"one\ngoes on, and on,Calm,Q', 0),
        ('one",Calm,Q', 0),  # opening quote lost
        ('one,"Calm,Q', 1),
        ('one,Calm,"Q', 2),
        ('"one"s,Calm,Q', 0),  # quote inside, not doubled
        ('"one" ,Calm,Q', 0),
        ('one,Ca"lm,Q', 1),
    ],
)
def test_a_lost_quote_is_named_where_it_opens_and_reading_goes_on(bad: str, cell: int) -> None:
    text = f'h,h,h\nfirst,Calm,Q\n{bad}\n"last, really",Calm,"Q"\n'
    after = 4 + bad.count("\n")
    assert list(scan_records(text, three_cells)) == [
        Record(1, ("h", "h", "h")),
        Record(2, ("first", "Calm", "Q")),
        QuoteFault(3, cell, after),
        Record(after, ("last, really", "Calm", "Q")),
    ]


def test_quote_open_to_the_end_of_the_file() -> None:
    events = list(scan_records('a,b,c\n"one\ntwo\nthree\n', three_cells))
    assert events[-1] == QuoteFault(2, 0, 5)


def test_even_quotes_inside_a_bare_cell_are_taken_as_meant() -> None:
    (record,) = scan_records('she said "no" twice,Calm,Q', three_cells)
    assert record == Record(1, ('she said "no" twice', "Calm", "Q"))


ODD_LINES = st.sampled_from(
    ['x","y', 't,Calm,Q', '"', '""', '"""', 'a""b', '"a', 'a"', ",", '"",""', '""",', '","', "",
     '"t,Calm,Q"', 'a,"b']
)  # fmt: skip


@settings(max_examples=25)
@given(st.lists(ODD_LINES, min_size=1, max_size=3), st.lists(ODD_LINES, max_size=3))
@example(['x","y'], [])
@example(['x","y', "t,Calm,Q"], [])
@example(['"'], ['""'])
def test_scanning_is_linear_however_the_quotes_lie(cycle: list[str], start: list[str]) -> None:
    """Twice the lines cost no more than about twice the work, counted in lines of Python run."""
    costs = []
    for repeats in (20, 40):
        text = "h,h,h\n" + "\n".join([*start, *cycle * repeats]) + "\n"
        with counted("data") as work:
            list(scan_records(text, three_cells))
        costs.append(work.lines)
    assert costs[1] <= 2.3 * costs[0] + 600
