"""The README's pictures: what a picture shows of a report, and the pictures that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pictures import MOST_BYTES, PICTURES, opened_at_uncertain, with_parts
from tests.browser.pages import report_page_file

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_page_file(tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


def test_a_picture_shows_its_parts_and_no_other(page: str) -> None:
    for headings, _ in PICTURES.values():
        cut = with_parts(page, headings)
        assert cut.count("<h2") == len(headings) and all(f">{h}</h2>" in cut for h in headings)
        assert cut.count("<main>") == cut.count("</main>") == 1 and "<h1" not in cut
    with pytest.raises(ValueError, match="no part"):
        with_parts(page, ("Poems",))


def test_an_uncertain_answer_is_open(page: str) -> None:
    opened = opened_at_uncertain(page)
    assert opened.count(" open><summary>") == 1
    assert " open><summary><strong>least certain" in opened


def test_the_committed_pictures_are_small() -> None:
    """PNG files of the sizes that the command makes, each under 200 kB."""
    assert {path.name for path in IMAGES.glob("*.png")} >= set(PICTURES)
    for name, (_, size) in PICTURES.items():
        content = (IMAGES / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) < MOST_BYTES == 200_000
        assert tuple(int.from_bytes(content[i : i + 4]) for i in (16, 20)) == size
