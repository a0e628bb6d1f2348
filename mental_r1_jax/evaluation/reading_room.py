"""The reading room of `report.html`: single completions, each token shaded by its entropy.

Of each set some right and some wrong answers are shown, half of them the most certain and half the
least certain. Certainty is the mean entropy of the last stage: it is measured in the same way in
every completion that has the stage, and this is where the model settles on a state.
"""

from __future__ import annotations

import itertools
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from mental_r1_jax.evaluation.completion_tokens import (
    CompletionTokens,
    Piece,
    pieces,
    text_between,
    tokens_within,
)
from mental_r1_jax.evaluation.metrics import UNREADABLE, Prediction

# Where the next shade begins, nats. ln 2 = 0.69, ln 4 = 1.39 and ln 10 = 2.30 are the entropies of
# 2, 4 and 10 equally likely tokens.
LEVELS = (0.1, 0.4, 0.7, 1.4, 2.3)
_NAMED_PIECES = 3

STYLE = """
:root{--e1:#fdf3d8;--e2:#fbe2a4;--e3:#f8ca6c;--e4:#f1a84a;--e5:#e88a3c}
@media(prefers-color-scheme:dark){:root{--e1:#2a2516;--e2:#40341a;--e3:#59431b;--e4:#73501a;
--e5:#8f5212}}
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;margin:.15rem 0 .3rem;line-height:1.75}
.tokens span,.scale span{border-radius:3px;print-color-adjust:exact}
.e1{background:var(--e1)}.e2{background:var(--e2)}.e3{background:var(--e3)}
.e4{background:var(--e4)}.e5{background:var(--e5)}
.scale span{padding:.1rem .5rem;margin-right:.4rem;border:1px solid var(--line);
display:inline-block}
.answer{margin:.6rem 0}.answer summary{cursor:pointer;overflow-wrap:anywhere}
.answer h5{font-size:.95rem;margin:.8rem 0 0}.answer h5 small{font-weight:400;color:var(--soft)}
.answer .tags{font-size:.8rem;white-space:normal}
h4{font-size:1rem;margin:1rem 0 .3rem}
@media(forced-colors:active){.e3{text-decoration:underline dotted}
.e4{text-decoration:underline}.e5{text-decoration:underline double}}
"""


@dataclass(frozen=True)
class Shown:
    """A prediction to show, and why: it is one of the most or of the least certain."""

    prediction: Prediction
    rank: str


def reading_room(
    predictions: Sequence[Prediction],
    *,
    number: int,
    stages: Sequence[str],
    include_text: bool,
) -> str:
    """The section of the page, as escaped HTML.

    Args:
        predictions: of any sets, with their tokens.
        number: right and wrong answers of each set, see `choose`.
        stages: names of the stages, in the order of `CompletionTokens.stage_spans`.
        include_text: show the post of each completion as well.
    """
    parts = [
        '<h2 id="reading-room">Reading room</h2>',
        _explanation(stages[-1]),
        f'<p class="scale">Entropy in nats: {_scale()}</p>',
    ]
    opened = False
    for name in dict.fromkeys(p.set_name for p in predictions):
        of_set = [p for p in predictions if p.set_name == name]
        parts.append(f'<section class="card"><h3>{escape(name)}</h3>')
        for kind, right in (("Right answers", True), ("Wrong answers", False)):
            chosen = choose([p for p in of_set if (p.prediction == p.label) == right], number)
            parts.append(f"<h4>{kind}</h4>" if chosen else f"<h4>{kind}: none</h4>")
            for one in chosen:
                parts.append(_answer(one, stages, include_text=include_text, opened=not opened))
                opened = True
        parts.append("</section>")
    return "\n".join(parts)


def choose(predictions: Sequence[Prediction], number: int) -> list[Shown]:
    """The most certain predictions and then the least certain ones, `number` in all.

    Half of them, rounded up, are the most certain. Ordered by the mean entropy of the last stage
    and then by row, from certain to uncertain; a completion without that stage is taken only where
    there are too few with it.
    """
    ranked = sorted(
        (p for p in predictions if p.stage_entropies[-1] is not None),
        key=lambda p: (p.stage_entropies[-1], p.row),
    )
    certain = ranked[: (number + 1) // 2]
    rest = ranked[len(certain) :]
    uncertain = rest[max(0, len(rest) - number // 2) :]
    missing = [p for p in predictions if p.stage_entropies[-1] is None]
    missing = sorted(missing, key=lambda p: p.row)[: number - len(certain) - len(uncertain)]
    ranks = ("most certain", certain), ("least certain", uncertain), ("no last stage", missing)
    return [Shown(p, rank) for rank, of_rank in ranks for p in of_rank]


def _explanation(last_stage: str) -> str:
    return (
        '<p class="soft">Completions of the model, each token shaded by the entropy of the '
        "model's choice at its place: 0 is certain, 0.69 (ln 2) a choice between two equally "
        "likely tokens, 2.3 (ln 10) one between ten. Most and least certain answers are told by "
        f"the mean entropy of the last stage, {escape(_words(last_stage))}. Completions may quote "
        "the posts: treat this file like the data.</p>"
    )


def _scale() -> str:
    """A sample of each shade with its range."""
    ranges = [f"under {LEVELS[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(LEVELS))]
    ranges.append(f"{LEVELS[-1]} and more")
    return "".join(f'<span class="e{level}">{words}</span>' for level, words in enumerate(ranges))


def _answer(shown: Shown, stages: Sequence[str], *, include_text: bool, opened: bool) -> str:
    """One completion, which opens and closes."""
    p, tokens = shown.prediction, shown.prediction.tokens
    if tokens is None:
        raise ValueError("the tokens of these predictions were not kept")
    last = p.stage_entropies[-1]
    facts = [f"row {p.row}", f"label {p.label}", f"answer {p.prediction or UNREADABLE}"]
    facts += [] if last is None else [f"last stage {last:.2f} nats"]
    facts += [] if p.well_formed else ["not well formed"]
    facts += ["cut at the length limit"] if p.truncated else []
    summary = f"<strong>{shown.rank}</strong>: {escape(', '.join(facts))}"
    body = "".join(_parts(p, tokens, stages))
    if include_text:
        post = escape(_shown(p.text))
        body += f'<h5>The post</h5><p class="tokens" dir="auto" lang="">{post}</p>'
    return (
        f'<details class="answer"{" open" if opened else ""}><summary>{summary}</summary>'
        f"{body}</details>"
    )


def _parts(p: Prediction, tokens: CompletionTokens, stages: Sequence[str]) -> Iterator[str]:
    """Stages, answer and what stands between them, in the order of the text."""
    cut = pieces(p.completion, tokens)
    spans = (*tokens.stage_spans, tokens.answer_span)
    means = (*p.stage_entropies, None)
    named = zip(spans, (*stages, "answer"), means, strict=True)
    known = [(span, name, mean) for span, name, mean in named if span is not None]
    at, end = 0, cut[-1].end if cut else 0
    for span, name, mean in sorted(known, key=lambda part: part[0]):
        # Parts of malformed text may overlap: nothing is shown twice.
        start, stop = (max(place, at) for place in span)
        yield _outside(p, cut, at, start)
        count = tokens_within(tokens, span)
        facts = [] if mean is None else [f"mean {mean:.2f} nats"]
        facts.append(f"{count} token" if count == 1 else f"{count} tokens")
        yield f"<h5>{escape(_words(name))} <small>{', '.join(facts)}</small></h5>"
        yield f'<p class="tokens" dir="auto" lang="">{_spans(p.completion, cut, start, stop)}</p>'
        yield _peaks(p.completion, cut, start, stop)
        at = stop
    yield _outside(p, cut, at, end)


def _outside(p: Prediction, cut: Sequence[Piece], start: int, end: int) -> str:
    """Tags and whatever else stands outside stages and answer; nothing where it is blank."""
    if not text_between(p.completion, start, end).strip():
        return ""
    spans = _spans(p.completion, cut, start, end)
    if p.well_formed:  # little but tags is found here: it is kept small
        return f'<p class="tokens tags" dir="auto" lang="">{spans}</p>'
    peaks = _peaks(p.completion, cut, start, end)
    return f'<p class="tokens" dir="auto" lang="">{spans}</p>{peaks}'


def _spans(completion: str, cut: Sequence[Piece], start: int, end: int) -> str:
    """The pieces from `start` to `end`; one that goes beyond is shown as far as it is inside."""
    parts = []
    for piece in cut:
        if piece.start < end and piece.end > start:
            text = text_between(completion, max(piece.start, start), min(piece.end, end))
            level = bisect_right(LEVELS, piece.entropy)
            kind = f' class="e{level}"' if level else ""
            several = f", {piece.num_tokens} tokens" if piece.num_tokens > 1 else ""
            hint = f'title="{piece.entropy:.2f}{several}"'
            parts.append(f"<span{kind} {hint}>{escape(_shown(text))}</span>")
    return "".join(parts)


def _peaks(completion: str, cut: Sequence[Piece], start: int, end: int) -> str:
    """The least certain pieces in words, for those who do not see shades."""
    shaded = [p for p in cut if p.start < end and p.end > start and p.entropy >= LEVELS[0]]
    highest = sorted(shaded, key=lambda p: (-p.entropy, p.start))[:_NAMED_PIECES]
    if not highest:
        return f'<p class="soft">No token of {LEVELS[0]} nats or more.</p>'
    named = []
    for piece in highest:
        text = _shown(text_between(completion, piece.start, piece.end).strip()) or "space"
        named.append(f'<bdi lang="">{escape(text)}</bdi> {piece.entropy:.2f}')
    return f'<p class="soft">Least certain: {"; ".join(named)}</p>'


def _shown(text: str) -> str:
    """`text` with everything visible that a page would hide, obey or refuse.

    Control and format characters (among them those that turn the direction of writing) become
    their code, as `\u27e8U+202E\u27e9`; broken bytes U+FFFD. Line ends, tabs and joiners stay.
    """
    return "".join(map(_shown_sign, text))


def _shown_sign(sign: str) -> str:
    if sign in "\n\t\u200c\u200d":
        return sign
    category = unicodedata.category(sign)
    if category == "Cs":
        return "\ufffd"
    return f"\u27e8U+{ord(sign):04X}\u27e9" if category in ("Cc", "Cf", "Cn", "Zl", "Zp") else sign


def _words(name: str) -> str:
    return name.replace("_", " ")
