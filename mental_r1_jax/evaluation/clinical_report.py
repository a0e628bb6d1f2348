"""The clinical numbers of `metrics.json` for a person: tables of the report and of the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from mental_r1_jax.evaluation.report_page import percent, scroll_card, table_head, table_row
from mental_r1_jax.evaluation.resampling import Estimate

MISSING = "-"

# Key -> (name, whether it is a share); in the order in which they are shown.
_NAMES: Mapping[str, tuple[str, bool]] = {
    "sensitivity": ("sensitivity %", True),
    "specificity": ("specificity %", True),
    "ppv": ("positive predictive value %", True),
    "npv": ("negative predictive value %", True),
    "auroc": ("AUROC %", True),
    "auprc": ("AUPRC %", True),
    "mae": ("mean absolute error, steps", False),
    "quadratic_weighted_kappa": ("quadratic weighted kappa", False),
    "spearman": ("Spearman correlation", False),
    "graded_precision": ("graded precision %", True),
    "graded_recall": ("graded recall %", True),
    "graded_f1": ("graded F1 %", True),
    "ordinal_error": ("off by more than one step %", True),
    "ece": ("expected calibration error %", True),
    "brier": ("Brier score of the confidence", False),
    "aurc": ("area under risk-coverage %", True),
    "accuracy_at_80": ("accuracy at 80% coverage %", True),
    "accuracy": ("accuracy %", True),
    "weighted_f1": ("weighted F1 %", True),
    "macro_f1": ("macro F1 %", True),
    "equalised_odds": ("equalised odds %", True),
}
_CONSOLE = (
    *("sensitivity", "specificity", "ppv", "npv", "auroc"),
    *("mae", "quadratic_weighted_kappa", "ece", "accuracy_at_80"),
)
_SHORT = {
    "ppv": "PPV %",
    "npv": "NPV %",
    "mae": "MAE",
    "quadratic_weighted_kappa": "QW kappa",
    "ece": "ECE %",
    "accuracy_at_80": "acc. at 80%",
}

EXPLANATION = (
    "95% intervals are percentile bootstraps over the posts. An unreadable answer is a wrong one: "
    "no call for a label, in ordered sets the farthest label, confidence 0. A dash is a number "
    "that these posts do not define, or that needs evaluate.confidence."
)


def shown_value(key: str, found: Estimate | None) -> str:
    """The number of an estimate, shares in percent, or a dash."""
    if found is None or found["value"] is None:
        return MISSING
    return _number(key, found["value"])


def shown_interval(key: str, found: Estimate | None) -> str:
    """The 95% interval of an estimate, or a dash."""
    if found is None or found["interval"] is None:
        return MISSING
    return " to ".join(_number(key, end) for end in found["interval"])


def clinical_section(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """A part of the report, as HTML.

    Args:
        documents: set -> its part of `metrics.json`, from `clinical_document`.
    """
    cards = "".join(_set_card(name, one) for name, one in documents.items())
    return f'<h2>Clinical evaluation</h2><p class="soft">{escape(EXPLANATION)}</p>{cards}'


def clinical_table(documents: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line a set for the console."""
    table = Table(title="clinical evaluation", title_justify="left")
    table.add_column("set")
    for key in _CONSOLE:
        table.add_column(_SHORT.get(key, _NAMES[key][0]), justify="right")
    for name, one in documents.items():
        found = _estimates(one)
        table.add_row(Text(name), *(shown_value(key, found.get(key)) for key in _CONSOLE))
    return table


def _number(key: str, value: float) -> str:
    return percent(value) if _NAMES[key][1] else f"{value:.3f}"


def _estimates(document: Mapping[str, Any]) -> dict[str, Estimate]:
    """The estimates of the set as a whole, by key."""
    parts = [document[name] or {} for name in ("clinical", "ordinal", "calibration")]
    return {key: value for part in parts for key, value in part.items()}


def _set_card(name: str, document: Mapping[str, Any]) -> str:
    """All tables of one set."""
    positive = document["positive_labels"]
    says = f"positive: {', '.join(positive)}" if positive else "no positive labels"
    tables = [_measures(_estimates(document)), _scorers(document["scorers"])]
    tables += [_labels(document["one_vs_rest"]), _groups(document["groups"])]
    shown = "".join(table for table in tables if table)
    heading = f'<h3>{escape(name)}</h3><p class="soft">{escape(says)}</p>'
    return scroll_card(
        f"Clinical evaluation of {name}", f'{heading}<div class="pair">{shown}</div>'
    )


def _measures(found: Mapping[str, Estimate]) -> str:
    rows = [
        table_row(_NAMES[key][0], [shown_value(key, found[key]), shown_interval(key, found[key])])
        for key in _NAMES
        if key in found
    ]
    return _table("All posts of the set", ["measure", "value", "95% interval"], rows)


def _scorers(document: Mapping[str, Any]) -> str:
    """Both scorers side by side."""
    kinds = ("strict", "imhi", "difference")
    rows = [
        table_row(
            _NAMES[key][0],
            [
                *(shown_value(key, document[kind][key]) for kind in kinds),
                shown_interval(key, document["difference"][key]),
            ],
        )
        for key in document["strict"]
    ]
    heads = ["scorer", "strict", f"imhi: unreadable is {document['imhi_label']}", "difference"]
    return _table("Two scorers of the same answers", [*heads, "95% interval"], rows)


def _labels(document: Mapping[str, Mapping[str, Estimate]] | None) -> str:
    """Each label against the rest."""
    if document is None:
        return ""
    keys = list(next(iter(document.values())))
    return _wide("Each label against the rest", "label", keys, document)


def _groups(document: Mapping[str, Any] | None) -> str:
    """Each group, and the largest gaps between them."""
    if document is None:
        return ""
    hidden = document["not_shown"]
    remark = ""
    if hidden["groups"]:
        remark = (
            f'<p class="soft">{hidden["groups"]} groups with {hidden["posts"]} posts are too '
            "small, or too many, to be shown.</p>"
        )
    if not document["groups"]:
        return f"<div>{remark}</div>"
    keys = [key for key in next(iter(document["groups"].values())) if key != "n"]
    gaps = document["gaps"]
    table = _wide("Each group", "group", keys, document["groups"])
    rows = [
        table_row(_NAMES[key][0], [shown_value(key, gaps[key]), shown_interval(key, gaps[key])])
        for key in gaps
    ]
    heads = ["measure", "value", "95% interval"]
    between = _table("Largest gaps between groups", heads, rows) if rows else ""
    return f"{table}{between}<div>{remark}</div>" if remark else table + between


def _wide(
    caption: str, head: str, keys: Sequence[str], document: Mapping[str, Mapping[str, Any]]
) -> str:
    """One line a label or group, one column a measure; a group has its number of posts."""
    counted = any("n" in one for one in document.values())
    names = [_NAMES[key][0] for key in keys]
    rows = [
        table_row(
            name,
            [*([str(one["n"])] if counted else []), *(shown_value(key, one[key]) for key in keys)],
        )
        for name, one in document.items()
    ]
    return _table(caption, [head, *(["posts"] if counted else []), *names], rows)


def _table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    head = f"<caption>{escape(caption)}</caption>{table_head(heads)}"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
