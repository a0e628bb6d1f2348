"""Report, study and board in a real browser: axe, keyboard, light and dark, wide and narrow.

Needs Chromium, Node.js, and a folder NODE_MODULES with axe-core and puppeteer-core (`npm install
axe-core puppeteer-core`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import board_page_file, report_page_file, study_page_file

pytestmark = pytest.mark.slow
CHECK = Path(__file__).with_name("axe_check.mjs")


@pytest.fixture(scope="module")
def browser() -> str:
    """Path of a Chromium; skips where something of the check is missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    modules = Path(os.environ.get("NODE_MODULES", "node_modules"))
    if found is None or shutil.which("node") is None:
        pytest.skip("needs Chromium and Node.js")
    for name in ("axe-core", "puppeteer-core"):
        if not (modules / name).is_dir():
            pytest.skip(f"needs {name} in the folder that NODE_MODULES names")
    return found


def checked(browser: str, page: Path) -> list[dict[str, Any]]:
    """What the check finds, for each colour scheme and width."""
    environment = {"NODE_MODULES": "node_modules"} | os.environ
    done = subprocess.run(
        ["node", str(CHECK), browser, str(page)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["found"]


@pytest.mark.parametrize(
    ("write", "stops"),
    [(report_page_file, 4 + 11), (study_page_file, 3), (board_page_file, 2 + 9)],
    ids=["report", "study", "board"],
)
def test_a_page_is_accessible(
    browser: str, tmp_path: Path, write: Callable[[Path], Path], stops: int
) -> None:
    found = checked(browser, write(tmp_path))
    assert {(one["scheme"], one["width"]) for one in found} == {
        (scheme, width) for scheme in ("light", "dark") for width in (1280, 380)
    }
    for one in found:
        assert one["violations"] == []
        assert one["passes"] > 20  # axe has looked
        # What it cannot decide is the contrast of text in drawings and of text on several lines.
        assert {rule["rule"] for rule in one["incomplete"]} <= {"color-contrast"}
        assert one["sideways"] == 0 and one["unreachable"] == [] and one["others"] == []
        # Every scrolling card and every completion can be reached by the key Tab, and shows it.
        assert len(one["stops"]) >= stops
        assert all(stop["name"] and stop["outline"] >= 2 for stop in one["stops"])


def test_defects_are_found(browser: str, tmp_path: Path) -> None:
    """The check is not blind: faint text, a table that cannot be scrolled by keys, no headings."""
    page = tmp_path / "bad.html"
    wide = "<td>a very wide cell that does not break</td>" * 20
    page.write_text(
        '<!DOCTYPE html><html lang="en"><head><title>t</title></head><body><main><h1>t</h1>'
        '<p style="color:#ddd;background:#fff">faint</p><style>:focus{outline:none}</style>'
        '<details><summary>opens</summary>x</details><div style="overflow-x:auto">'
        f'<table style="white-space:nowrap"><tr>{wide}</tr></table></div></main></body></html>'
    )
    for one in checked(browser, page):
        assert {"color-contrast", "scrollable-region-focusable"} <= {
            rule["rule"] for rule in one["violations"]
        }
        assert len(one["unreachable"]) == 1
        assert [stop["outline"] for stop in one["stops"]][:1] == [0]
