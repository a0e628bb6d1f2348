"""The README's pictures: scores and reading room of a report, as Chromium shows them.

    python benchmarks/pictures.py REPORT.html FOLDER

`make pictures` evaluates the quickstart's model on its made-up posts and takes them of that report.
Posts and completions of people must never become pictures in a repository.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# File -> headings of the parts that it shows, and its size in pixels.
PICTURES = {
    "scores.png": (("Scores", "F1 of each set"), (1100, 780)),
    "reading_room.png": (("Reading room",), (1100, 1140)),
}
MOST_BYTES = 200_000
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)


def with_parts(page: str, headings: tuple[str, ...]) -> str:
    """The page with those of its parts (each begins with an `<h2>`) that have these headings.

    Raises:
        ValueError: a heading is not there.
    """
    head, body = page.split("<main>", 1)
    first, *parts = re.split(r"(?=<h2)", body.split("</main>", 1)[0])
    by_heading = {re.sub(r"<[^>]+>", "", part.split("</h2>", 1)[0]): part for part in parts}
    missing = [heading for heading in headings if heading not in by_heading]
    if missing:
        raise ValueError(f"the report has no part {missing}, only {list(by_heading)}")
    shown = "".join(by_heading[heading] for heading in headings)
    # Without the room above, which a page has and a picture need not.
    style = "<style>main{padding-top:0}</style></head>"
    return f"{head.replace('</head>', style)}<main>{shown}</main></body></html>"


def opened_at_uncertain(page: str) -> str:
    """The page with the first of its least certain answers open, where shades are to be seen."""
    closed = page.replace('<details class="answer" open>', '<details class="answer">')
    wanted = '<details class="answer"><summary><strong>least certain'
    return closed.replace(wanted, wanted.replace('"answer"', '"answer" open'), 1)


def take(page: str, file: Path, size: tuple[int, int]) -> None:
    """Write what Chromium shows of a page to a PNG file."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        sys.exit("error: no Chromium found; install it")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, encoding="utf-8")
        command = [chromium, *FLAGS, f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={size[0]},{size[1]}", f"--screenshot={file.absolute()}"]
        subprocess.run([*command, source.as_uri()], check=True, capture_output=True, timeout=120)
    if file.stat().st_size > MOST_BYTES:
        sys.exit(f"error: {file} has {file.stat().st_size} bytes, more than {MOST_BYTES}")


def main(report: str, folder: str) -> None:
    """Take all pictures of a report."""
    page = opened_at_uncertain(Path(report).read_text(encoding="utf-8"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (headings, size) in PICTURES.items():
        take(with_parts(page, headings), Path(folder) / name, size)


if __name__ == "__main__":
    main(*sys.argv[1:])
