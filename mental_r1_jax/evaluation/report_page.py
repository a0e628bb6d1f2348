"""`report.html`: one page without scripts or external resources, readable in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mental_r1_jax.evaluation import charts
from mental_r1_jax.evaluation.metrics import UNREADABLE, SetMetrics, average_metrics

STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--soft:#5b6475;--line:#d9dee7;--page:#f6f7f9;
--card:#fff;--blue:#2f6fde;--amber:#b7791f;--note:#fff7e6;--note-line:#e8c98a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b5;--line:#313846;--page:#12151b;
--card:#1a1f28;--blue:#6ea2ff;--amber:#e0ac55;--note:#2a2417;--note-line:#6b5627}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .75rem}h2{font-size:1.2rem;margin:2.25rem 0 .5rem}
h3{font-size:1rem;margin:0 0 .6rem}p{margin:.3rem 0 .8rem}
p.soft{color:var(--soft);font-size:.9rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.15rem;
margin:.75rem 0;overflow-x:auto}
:focus-visible{outline:3px solid var(--blue);outline-offset:2px}
caption{color:var(--soft);font-size:.9rem;text-align:left;padding:0 0 .4rem}
.note{background:var(--note);border-color:var(--note-line)}
.grid{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
.grid .card{margin:0}
.pair{display:flex;flex-wrap:wrap;gap:1.5rem 2.5rem;align-items:flex-start}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:0}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.32rem .65rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
th{font-weight:600}thead th{color:var(--soft);vertical-align:bottom;
white-space:normal;max-width:7.5rem}
th[scope=row],table thead th:first-child{text-align:left}
.wide th,.wide td{padding:.32rem .45rem}
.wide th[scope=row]{white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:13rem}
.confusion th[scope=row]{white-space:normal;max-width:13rem}
.wide{width:100%}tbody tr:last-child>*{border-bottom:0}tr.mean>*{font-weight:700;
border-top:2px solid var(--line)}
.confusion td{text-align:center;min-width:3.2rem;border:1px solid var(--line)}
.confusion td.right{outline:2px solid var(--blue);outline-offset:-2px}
.confusion thead th:not(:first-child){text-align:center}
.confusion thead th{font-size:.85rem;padding:.32rem .4rem}
.confusion tbody tr:last-child td{border-bottom:1px solid var(--line)}
svg{display:block;width:100%;height:auto;font:12px system-ui,"DejaVu Sans",sans-serif}
.chart{min-width:640px}.bars{max-width:340px}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}.rule{stroke:var(--line)}
.bar{fill:var(--blue)}.reach{stroke:var(--blue);stroke-width:3;stroke-linecap:round}
.ring{fill:none;stroke:var(--amber);stroke-width:2}
@media(max-width:30rem){.facts{grid-template-columns:1fr}.facts dd{margin-bottom:.35rem}}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""

RESPONSIBLE_USE = (
    "These are scores of a research model on labelled posts. It is not a medical device and gives "
    "no diagnosis: do not use its answers to decide about a person. Labels are noisy, the posts "
    "come from few platforms, and a score says nothing about groups or places that the data do not "
    "cover. Whoever is in danger should call the local emergency number or a crisis line."
)

MEASURES = (
    ("weighted F1", "mean F1 of the labels, weighted by how often they occur"),
    ("macro F1", "plain mean F1 of the labels: rare ones count as much as common ones"),
    ("balanced accuracy", "mean recall of the labels; a constant answer gets 1 / labels"),
    ("well formed", "completions with every stage and an answer, in the form of the grammar"),
    ("truncated", "completions that reached the length limit"),
    (UNREADABLE, "completions without a readable label; they count as wrong"),
    ("interval", "95% percentile bootstrap over the posts"),
)


def report_page(
    metrics: Mapping[str, SetMetrics],
    *,
    title: str,
    context: Mapping[str, str],
    sections: Sequence[str] = (),
    style: str = "",
) -> str:
    """The whole page; every given string is escaped.

    Args:
        sections: further parts of the page, as HTML that is escaped already.
        style: CSS that these parts need.
    """
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in context.items())
    measures = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in MEASURES)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="card"><dl class="facts">{facts}</dl></div>' if context else "",
        f'<div class="card note"><strong>Responsible use.</strong> {RESPONSIBLE_USE}</div>',
        "<h2>Scores</h2>",
        scroll_card("Scores", _score_table(metrics)),
        "<h2>F1 of each set</h2>",
        scroll_card("F1 of each set", _f1_chart(metrics)),
        "<h2>Mean entropy by stage</h2>",
        '<p class="soft">Nats, over the completions that have the stage. CRPO wants early stages '
        "to explore (high) and late stages to decide (low).</p>",
        f'<div class="grid">{"".join(_entropy_cards(metrics))}</div>',
        "<h2>Labels and confusions</h2>",
        '<p class="soft">Rows are true labels, columns the answers; shade is the share of the row. '
        "Right answers are outlined.</p>",
        *(_set_card(name, one) for name, one in metrics.items()),
        *sections,
        "<h2>Measures</h2>",
        f'<div class="card"><dl class="facts">{measures}</dl></div>',
    ]
    return html_page(title, body, style)


def html_page(title: str, body: Iterable[str], style: str = "") -> str:
    """A page of its own around `body`, empty parts left out; `style` is added to ours."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{charts.STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def scroll_card(name: str, content: str) -> str:
    """A card that scrolls sideways where it is too wide, with the keyboard too; `name` is escaped.

    What scrolls must take the focus, and what takes the focus must have a name that a screen
    reader can say (WCAG 2.1.1 and 4.1.2).
    """
    label = escape(name, quote=True)
    return f'<div class="card" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def percent(fraction: float) -> str:
    """A fraction from 0 to 1 in percent, with one digit."""
    return f"{100 * fraction:.1f}"


def table_row(heading: str, cells: Iterable[str], *, kind: str = "") -> str:
    """A table row; `heading` is escaped, cells are numbers of ours."""
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    columns = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'{opening}<th scope="row">{escape(heading)}</th>{columns}</tr>'


def table_head(names: Sequence[str]) -> str:
    """The head of a table; the names are escaped."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _score_table(metrics: Mapping[str, SetMetrics]) -> str:
    columns: tuple[str, ...] = ("weighted_f1", "macro_f1", "balanced_accuracy", "accuracy")
    columns += ("well_formed", "truncated", "unreadable")
    names = [name.replace("_", " ").replace("f1", "F1") for name in columns]
    rows = []
    for name, one in metrics.items():
        cells = [percent(getattr(one, column)) for column in columns]
        cells.insert(1, _interval(one))
        rows.append(table_row(name, [str(one.n), *cells, f"{one.mean_tokens:.0f}"]))
    average = average_metrics(metrics)
    cells = [percent(average[column]) for column in columns]
    cells.insert(1, "")
    rows.append(table_row("average", ["", *cells, f"{average['mean_tokens']:.0f}"], kind="mean"))
    names.insert(1, "95% interval")
    head = table_head(["set", "posts", *names, "tokens"])
    caption = "Scores and rates in %; the average is over sets, unweighted."
    return (
        f'<table class="wide"><caption>{caption}</caption>{head}'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _interval(metrics: SetMetrics) -> str:
    """The interval of the weighted F1 in percent, "-" where there is none."""
    found = metrics.weighted_f1_interval
    return "-" if found is None else " to ".join(percent(end) for end in found)


def _f1_chart(metrics: Mapping[str, SetMetrics]) -> str:
    """Dots for weighted F1 with their intervals, rings for macro F1; one line a set."""
    left, width, top, pitch = 190, 900, 34, 34
    height = top + pitch * len(metrics) + 26

    def x(score: float) -> float:
        return left + (width - left - 70) * score

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="weighted and macro F1 of each set; the numbers are in the table above">',
        f'<circle class="bar" cx="{left + 6}" cy="12" r="5"/>'
        f'<text x="{left + 18}" y="16">weighted F1, with 95% interval</text>'
        f'<circle class="ring" cx="{left + 246}" cy="12" r="5"/>'
        f'<text x="{left + 258}" y="16">macro F1</text>',
    ]
    for tick in (0, 20, 40, 60, 80, 100):
        at = x(tick / 100)
        parts.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - 22}"/>'
            f'<text class="soft" x="{at:.1f}" y="{height - 6}" text-anchor="middle">{tick}</text>'
        )
    for i, (name, one) in enumerate(metrics.items()):
        y = top + pitch * (i + 0.5)
        parts.append(
            f'<text x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(name))}</text>'
        )
        if one.weighted_f1_interval is not None:
            low, high = (x(end) for end in one.weighted_f1_interval)
            parts.append(
                f'<line class="reach" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(
            f'<circle class="bar" cx="{x(one.weighted_f1):.1f}" cy="{y:.1f}" r="6"/>'
            f'<circle class="ring" cx="{x(one.macro_f1):.1f}" cy="{y:.1f}" r="8"/>'
            f'<text x="{width - 52}" y="{y + 4:.1f}">{percent(one.weighted_f1)}</text>'
        )
    return "".join(parts) + "</svg>"


def _scaled(
    metrics: Mapping[str, SetMetrics],
) -> list[tuple[str, list[tuple[float | None, float]]]]:
    """For each set its stage entropies, each with its share of the largest of all sets."""
    found = [e for one in metrics.values() for e in one.stage_entropies if e is not None]
    largest = max([*found, 1e-9])
    return [
        (name, [(e, 0.0 if e is None else max(0.0, e / largest)) for e in one.stage_entropies])
        for name, one in metrics.items()
    ]


def _entropy_cards(metrics: Mapping[str, SetMetrics]) -> list[str]:
    """A card a set."""
    scaled = _scaled(metrics)
    return [_entropy_card(name, metrics[name].stages, stages) for name, stages in scaled]


def _entropy_card(
    name: str, names: Sequence[str], stages: Sequence[tuple[float | None, float]]
) -> str:
    """A bar a stage, on a scale shared by all sets."""
    label_width, bar_width, pitch = 150, 78, 24
    height = pitch * len(stages)
    named = zip(names, (entropy for entropy, _ in stages), strict=True)
    values = ", ".join(f"{_words(stage)} {_nats(entropy)}" for stage, entropy in named)
    parts = [
        f'<svg class="bars" viewBox="0 0 280 {height}" role="img" '
        f'aria-label="mean entropy in nats, {escape(name)}: {values}">'
    ]
    for i, (stage, (entropy, share)) in enumerate(zip(names, stages, strict=True)):
        y, end = pitch * i, label_width + bar_width * share
        parts.append(
            f'<text class="soft" x="0" y="{y + 16}">{escape(_short(_words(stage)))}</text>'
            f'<rect class="bar" x="{label_width}" y="{y + 5}" rx="2" height="14" '
            f'width="{bar_width * share:.1f}"/>'
            f'<text x="{end + 6:.1f}" y="{y + 16}">{_nats(entropy)}</text>'
        )
    return f'<div class="card"><h3>{escape(name)}</h3>{"".join(parts)}</svg></div>'


def _set_card(name: str, metrics: SetMetrics) -> str:
    """The confusion matrix and the per-class table of one set."""
    labels = [one.label for one in metrics.per_class]
    rows = []
    for i, counts in enumerate(metrics.confusion):
        total = max(1, sum(counts))
        cells = "".join(
            f"<td{' class=right' if i == j else ''} "
            f'style="background:rgba(47,111,222,{0.55 * count / total:.2f})">{count}</td>'
            for j, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{escape(labels[i])}</th>{cells}</tr>')
    confusion = (
        '<table class="confusion"><caption>Answers by true label: how many posts</caption>'
        f"{table_head(['true label', *labels, UNREADABLE])}"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    classes = "".join(
        table_row(
            one.label,
            [percent(one.precision), percent(one.recall), percent(one.f1), str(one.support)],
        )
        for one in metrics.per_class
    )
    table = (
        "<table><caption>Scores of each label</caption>"
        f"{table_head(['label', 'precision %', 'recall %', 'F1 %', 'posts'])}"
        f"<tbody>{classes}</tbody></table>"
    )
    pair = f'<div class="pair">{confusion}{table}</div>'
    return scroll_card(f"Labels and confusions of {name}", f"<h3>{escape(name)}</h3>{pair}")


def _nats(entropy: float | None) -> str:
    return "none" if entropy is None else f"{entropy:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\u2026"
