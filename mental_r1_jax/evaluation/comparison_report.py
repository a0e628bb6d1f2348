"""The files and the console tables of a comparison of two evaluations.

`comparison.json` holds the numbers, `comparison.csv` one line for each post that was answered
differently (set, row, labels; never its text), `comparison.html` both to look at.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mental_r1_jax.evaluation.clinical_report import shown_interval, shown_value
from mental_r1_jax.evaluation.comparison import Flip
from mental_r1_jax.evaluation.metrics import UNREADABLE
from mental_r1_jax.evaluation.report import spreadsheet_cell
from mental_r1_jax.evaluation.report_page import html_page, scroll_card, table_head, table_row
from mental_r1_jax.private_files import write_private

COMPARISON_FILES = ("comparison.json", "comparison.csv", "comparison.html")
_SHOWN_FLIPS = 20
_NAME = {
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
}


def write_comparison(
    folder: Path, document: Mapping[str, Any], found: Sequence[Flip], names: tuple[str, str]
) -> None:
    """Write the three files into `folder`, to be read by their owner only.

    Args:
        document: from `compare`.
        names: of the two evaluations.
    """
    both = dict(zip(("first", "second"), names, strict=True))
    text = json.dumps({**both, **document}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_private(folder / COMPARISON_FILES[0], text.encode("utf-8"))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["set_name", "row", "label", "first", "second"])
    for one in found:
        line = (one.set_name, one.row, one.label, one.first, one.second)
        writer.writerow([spreadsheet_cell(cell) for cell in line])
    write_private(folder / COMPARISON_FILES[1], buffer.getvalue().encode("utf-8"))
    page = _page(document, found, names)
    write_private(folder / COMPARISON_FILES[2], page.encode("utf-8", errors="replace"))


def comparison_tables(document: Mapping[str, Any], found: Sequence[Flip]) -> list[Table]:
    """Differences by set, and the first posts that flipped, for the console."""
    table = Table(title="difference first - second (in %)", title_justify="left")
    heads = ("set", "n", "score", "first", "second", "difference", "95% interval", "McNemar p")
    for head in heads:
        table.add_column(head, justify="left" if head in ("set", "score") else "right")
    for name, one in document["sets"].items():
        for place, (key, sides) in enumerate(one["scores"].items()):
            opening = (Text(name), str(one["n"])) if place == 0 else ("", "")
            p = f"{one['mcnemar']['p_value']:.3g}" if key == "accuracy" else ""
            table.add_row(*opening, _NAME.get(key, key), *_cells(key, sides), p)
    posts = Table(title=f"posts that flipped: {len(found)}", title_justify="left")
    for head in ("set", "row", "label", "first", "second"):
        posts.add_column(head, justify="right" if head == "row" else "left")
    for flip in found[:_SHOWN_FLIPS]:
        posts.add_row(*(Text(cell) for cell in _flip_cells(flip)))
    if len(found) > _SHOWN_FLIPS:
        posts.add_row("...", "", "", "", "")
    return [table, posts]


def _cells(key: str, sides: Mapping[str, Any]) -> list[str]:
    values = [shown_value(key, sides[side]) for side in ("first", "second", "difference")]
    return [*values, shown_interval(key, sides["difference"])]


def _flip_cells(flip: Flip) -> list[str]:
    answers = [UNREADABLE if one is None else one for one in (flip.first, flip.second)]
    return [flip.set_name, str(flip.row), flip.label, *answers]


def _page(document: Mapping[str, Any], found: Sequence[Flip], names: tuple[str, str]) -> str:
    heads = table_head(["score", "first %", "second %", "difference", "95% interval"])
    body = [
        "<h1>Two evaluations of the same posts</h1>",
        f'<div class="card"><dl class="facts"><dt>first</dt><dd>{escape(names[0])}</dd>'
        f"<dt>second</dt><dd>{escape(names[1])}</dd></dl></div>",
        '<p class="soft">Differences are first - second; 95% intervals are paired percentile '
        "bootstraps over the posts. McNemar's exact p-values are not corrected for the number of "
        "sets.</p>",
        "<h2>Scores</h2>",
    ]
    for name, one in document["sets"].items():
        rows = [
            table_row(_NAME.get(key, key), _cells(key, sides))
            for key, sides in one["scores"].items()
        ]
        test = one["mcnemar"]
        says = (
            f"{one['n']} posts; right in the first only: {test['only_first_right']}, in the second "
            f"only: {test['only_second_right']}, McNemar p = {test['p_value']:.3g}"
        )
        table = "<table><caption>Scores and their differences</caption>"
        table += f"{heads}<tbody>{''.join(rows)}</tbody></table>"
        content = f'<h3>{escape(name)}</h3>{table}<p class="soft">{says}</p>'
        body.append(scroll_card(f"Differences in {name}", content))
    rows = [table_row(cells[0], map(escape, cells[1:])) for cells in map(_flip_cells, found)]
    head = table_head(["set", "row", "label", "first", "second"])
    table = "<table><caption>Posts that were answered differently</caption>"
    table += f"{head}<tbody>{''.join(rows)}</tbody></table>"
    body += [f"<h2>Posts that flipped: {len(found)}</h2>", scroll_card("Posts that flipped", table)]
    return html_page("Two evaluations", body)
