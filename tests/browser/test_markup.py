"""What the check in a browser asks for, as far as the markup alone shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mental_r1_jax.evaluation import reading_room, report_page
from tests.browser.pages import board_page_file, report_page_file, study_page_file

EMPTY = {"meta", "input", "wbr", "circle", "line", "rect", "path", "polygon", "polyline"}


class Markup(HTMLParser):
    """Wide parts with their regions, names of regions, and names of tables and drawings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.homeless: list[str] = []
        self.regions: list[str] = []
        self.counts = {"table": 0, "caption": 0, "th": 0, "scoped": 0}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = dict(pairs)
        if attributes.get("role") == "region":
            assert attributes["tabindex"] == "0"
            self.regions.append(attributes["aria-label"] or "")
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag in self.counts:
            self.counts[tag] += 1
            self.counts["scoped"] += "scope" in attributes
        wide = tag == "table" or attributes.get("class") == "chart"
        if wide and not any(one.get("role") == "region" for _, one in self.open):
            self.homeless.append(tag)
        if tag not in EMPTY:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop()[0] == tag


@pytest.mark.parametrize(
    ("write", "regions"),
    [(report_page_file, 4 + 2), (study_page_file, 3), (board_page_file, 2)],
    ids=["report", "study", "board"],
)
def test_wide_parts_can_be_scrolled_by_keys_and_all_is_named(
    tmp_path: Path, write: Callable[[Path], Path], regions: int
) -> None:
    markup = Markup(write(tmp_path).read_text(encoding="utf-8"))
    assert markup.homeless == []
    assert len(set(markup.regions)) == len(markup.regions) >= regions and "" not in markup.regions
    counts = markup.counts
    assert counts["table"] == counts["caption"] > 0 and counts["th"] == counts["scoped"] > 0


def luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb` (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_on_every_ground_and_shade(dark: bool) -> None:
    """Also in drawings, whose text axe leaves undecided."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)  # a well-known near miss
    pairs = [
        re.findall(r"--([\w-]+):(#\w+)", style.split("@media(prefers-color-scheme:dark)")[part])
        for style in (report_page.STYLE, reading_room.STYLE)
        for part in range(1 + dark)
    ]
    colours = dict(pair for of_style in pairs for pair in of_style)
    grounds = ["page", "card", "note", *(f"e{i}" for i in range(1, 6))]
    assert all(contrast(colours["ink"], colours[ground]) >= 4.5 for ground in grounds)
    assert all(contrast(colours["soft"], colours[ground]) >= 4.5 for ground in ("page", "card"))
    assert all(contrast(colours[mark], colours["card"]) >= 3 for mark in ("blue", "amber"))
    # Each shade is told from the one before.
    shades = [luminance(colours[ground]) for ground in ["card", *grounds[3:]]]
    assert shades == sorted(shades, reverse=not dark)
