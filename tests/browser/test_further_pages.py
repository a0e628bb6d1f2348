"""Clinical numbers, audits and comparisons: the same demands as on report and study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.further_pages import clinical_page_file, comparison_page_file
from tests.browser.test_accessibility import browser, checked
from tests.browser.test_markup import Markup

__all__ = ["browser"]  # the fixture

PAGES = pytest.mark.parametrize(
    "write", [clinical_page_file, comparison_page_file], ids=["clinical", "comparison"]
)


@PAGES
def test_wide_parts_can_be_scrolled_by_keys_and_all_is_named(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    markup = Markup(write(tmp_path).read_text(encoding="utf-8"))
    assert markup.homeless == []
    assert len(set(markup.regions)) == len(markup.regions) >= 2 and "" not in markup.regions
    counts = markup.counts
    assert counts["table"] == counts["caption"] >= 2 and counts["th"] == counts["scoped"] > 0


@pytest.mark.slow
@PAGES
def test_a_page_is_accessible(browser: str, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    for one in checked(browser, write(tmp_path)):
        assert one["violations"] == []
        assert one["sideways"] == 0 and one["unreachable"] == [] and one["others"] == []
        assert len(one["stops"]) >= 2
        assert all(stop["name"] and stop["outline"] >= 2 for stop in one["stops"])
