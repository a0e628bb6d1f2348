"""The audits of an evaluation for a person: parts of the report; nothing of a post is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mental_r1_jax.evaluation.clinical_report import MISSING
from mental_r1_jax.evaluation.comparison_report import COMPARISON_FILES
from mental_r1_jax.evaluation.report_page import percent, scroll_card, table_head, table_row
from mental_r1_jax.evaluation.resampling import Estimate
from mental_r1_jax.private_files import write_private

_EXPLAINED = {
    "stages": (
        "Audit: do the stages matter?",
        "The likeliest label after a changed reasoning, its answer forced. Swap: the stage is that "
        "of another post. Cut: the reasoning ends after the stage, compared with ending before it. "
        "A stage that the answer ignores has 0. Change of p is that of the label that is likeliest "
        "after the whole reasoning.",
    ),
    "groups": (
        "Audit: does it matter who is said to write?",
        "Answers to the same posts with a beginning such as &quot;As a woman, &quot;. Flips are "
        "counted against the post without it; gaps are the largest difference between two values.",
    ),
    "memory": (
        "Audit: what is repeated?",
        "Words in the longest run that a completion shares with its own post, and with any "
        "training post.",
    ),
}


def audit_sections(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One part of the report for each audit, as HTML, by name of the audit."""
    return [
        f'<h2>{_EXPLAINED[name][0]}</h2><p class="soft">{_EXPLAINED[name][1]}</p>'
        + _BODIES[name](document)
        for name, document in documents.items()
    ]


def write_audits(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `audit_NAME.json` for each audit, to be read by its owner only.

    What an earlier evaluation has left there, audits and comparisons, is removed: it is of other
    answers.
    """
    for name in _EXPLAINED:
        (folder / f"audit_{name}.json").unlink(missing_ok=True)
    for name in COMPARISON_FILES:
        (folder / name).unlink(missing_ok=True)
    for name, document in documents.items():
        text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_private(folder / f"audit_{name}.json", text.encode("utf-8"))


def _share(found: Estimate) -> str:
    return MISSING if found["value"] is None else percent(found["value"])


def _range(found: Estimate) -> str:
    ends = found["interval"]
    return MISSING if ends is None else " to ".join(map(percent, ends))


def _card(title: str, name: str, tables: Sequence[str]) -> str:
    """What an audit says of one set."""
    pair = f'<div class="pair">{"".join(tables)}</div>'
    return scroll_card(f"{title}: {name}", f"<h3>{escape(name)}</h3>{pair}")


def _table(caption: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    head = f"<caption>{escape(caption)}</caption>{table_head(heads)}"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _stages(document: Mapping[str, Any]) -> str:
    heads = ["stage", "posts", "swap: flips %", "95% interval", "change of p, points"]
    heads += ["cut: flips %", "95% interval", "change of p, points", "agreement so far %"]
    cards = []
    for name, of_set in document["sets"].items():
        rows = []
        for stage, kinds in of_set["stages"].items():
            swap, cut = kinds["swap"], kinds["cut"]
            cells = [str(cut["n"])]
            for one in (swap, cut):
                rate = one["flip_rate"]
                cells += [_share(rate), _range(rate), _share(one["p_change"])]
            rows.append(table_row(stage.replace("_", " "), [*cells, _share(cut["agreement"])]))
        table = _table("With a stage changed or cut", heads, rows)
        cards.append(_card("Audit of stages", name, [table]))
    return "".join(cards)


def _groups(document: Mapping[str, Any]) -> str:
    cards = []
    for name, of_set in document["sets"].items():
        pairs = []
        for attribute, found in of_set.items():
            if attribute == "n":
                continue
            keys = list(next(iter(found["values"].values())))
            rows = [
                table_row(value, [_share(one[key]) for key in keys])
                for value, one in found["values"].items()
            ]
            heads = [attribute, *(f"{key.replace('_', ' ')} %" for key in keys)]
            rates = _table(f"Rates by {attribute}", heads, rows)
            gaps = [
                table_row(key.replace("_", " "), [_share(gap), _range(gap)])
                for key, gap in found["gaps"].items()
            ]
            heads = ["rate", "%", "95% interval"]
            between = _table(f"Largest gaps by {attribute}", heads, gaps)
            pairs.append(f'<div class="pair">{rates}{between}</div>')
        cards.append(_card("Audit of groups", name, pairs))
    return "".join(cards)


def _memory(document: Mapping[str, Any]) -> str:
    heads = ["longest run shared with", "mean", "median", "95th percentile", "longest"]
    cards = []
    for name, of_set in document["sets"].items():
        rows = [
            table_row(
                title,
                [f"{of_set[key][number]:.0f}" for number in ("mean", "median", "p95")]
                + [str(of_set[key]["longest"])],
            )
            for key, title in (("own_post", "its own post"), ("training_posts", "training posts"))
        ]
        table = _table("Words of the longest run", heads, rows)
        cards.append(_card("Audit of memory", name, [table]))
    kept, limit = document["repeated"], document["reported_words"]
    says = f"{len(kept)} completions share {limit} words or more with one of the "
    says += f"{document['training_posts']} training posts, and fewer with their own."
    rows = [table_row(one["set_name"], [str(one["row"]), str(one["words"])]) for one in kept]
    table = _table("Such completions", ["set", "row", "words"], rows) if rows else ""
    return "".join(cards) + scroll_card("Repeated training posts", f"<p>{says}</p>{table}")


_BODIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "stages": _stages,
    "groups": _groups,
    "memory": _memory,
}
