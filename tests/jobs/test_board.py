"""`mental-r1 board`: what it reads, shows and refuses; no model is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mental_r1_jax.cli import main
from mental_r1_jax.recipe import dump_config, parse_config
from tests.evaluation.made_up_runs import (
    cold_start_lines,
    drawings,
    metric_lines,
    numbered_points,
)

RECIPE = """
model: {path: /secret/models/start}
data: {sets: [Stress-Synthetic], root: /secret/posts}
run: {output_dir: /secret/runs/x}
"""


def write_run(
    folder: Path,
    lines: Sequence[dict[str, float]] | None = None,
    overrides: Sequence[str] = (),
    tested: float | None = None,
) -> Path:
    folder.mkdir(parents=True)
    config = parse_config(RECIPE, overrides, source="made up")
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines or metric_lines(20))
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if tested is not None:
        scores = folder / "evaluation" / "test" / "metrics.json"
        scores.parent.mkdir(parents=True)
        scores.write_text(json.dumps({"sets": {}, "average": {"weighted_f1": tested}}))
    return folder


def board(folder: Path, *runs: Path) -> str:
    """The page of `runs`, written to `folder`/board.html."""
    assert main(["board", *map(str, runs), "--output", str(folder / "board.html")]) == 0
    return (folder / "board.html").read_text(encoding="utf-8")


def table(page: str, label: str) -> list[list[str]]:
    """The cells of a table's rows, tags and samples of lines left out."""
    part = page.split(f'aria-label="{label}"')[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in part.split("<tr>")[1:]]
    return [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]


def test_the_figures_of_each_run(tmp_path: Path) -> None:
    """Of 20 steps of 30 s with rewards up to 2.0, the last two have a mean of 1.95."""
    one = write_run(tmp_path / "one", tested=0.625)
    other = write_run(tmp_path / "other", metric_lines(20, bonus=-3.0))
    cold = write_run(tmp_path / "cold", cold_start_lines(9))
    rows = table(board(tmp_path, one, other, cold), "Figures of the runs")
    heads = ["run", "steps", "reward", "last validation", "best validation", "test", "time"]
    assert rows == [
        heads,
        ["one", "20", "1.950", "50.0 (20)", "50.0 (20)", "62.5", "10 min"],
        ["other", "20", "-1.050", "20.0 (20)", "40.0 (0)", "-", "10 min"],
        ["cold", "9", "-", "-", "-", "-", "9.0 s"],
    ]


def test_what_differs_and_no_more(tmp_path: Path) -> None:
    """Of places the last part is shown, numbered where that is alike; of output nothing."""
    first = write_run(tmp_path / "a", None, ["run.seed=1", "run.output_dir=/secret/a"])
    second = write_run(tmp_path / "b", None, ["run.seed=2", "model.path=/other/secret/start"])
    page = board(tmp_path, first, second)
    rows = table(page, "What differs in the recipes")
    assert rows == [["key", "a", "b"], ["model.path", "start", "start (2)"], ["run.seed", "1", "2"]]
    same = board(tmp_path, first, write_run(tmp_path / "c", None, ["run.seed=1"]))
    assert "All recipes that could be read are the same." in same


def test_many_runs_with_few_differences_go_down_the_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{i}", None, [f"run.seed={i}"]) for i in range(3)]
    rows = table(board(tmp_path, *runs), "What differs in the recipes")
    assert rows == [["run", "run.seed"], ["r0", "0"], ["r1", "1"], ["r2", "2"]]


def test_a_hub_id_stays_whole(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, None, [f"model.path={name}/Model-1B"]) for name in ("org", "me")
    ]
    rows = table(board(tmp_path, *runs), "What differs in the recipes")
    assert rows[1:] == [["org", "org/Model-1B"], ["me", "me/Model-1B"]]


def test_no_page_tells_where_things_lie(tmp_path: Path) -> None:
    """Two runs of one name are told apart by the folder above; nothing above that is shown."""
    runs = [
        write_run(tmp_path / "deep" / name / "crpo", None, [f"data.root=/secret/{name}/posts"])
        for name in ("left", "right")
    ]
    runs[1].joinpath("config.yaml").write_text("[broken", encoding="utf-8")
    page = board(tmp_path, *runs)
    assert "secret" not in page and str(tmp_path) not in page and "deep" not in page
    rows = table(page, "Figures of the runs")
    assert [row[0] for row in rows[1:]] == ["left/crpo", "right/crpo"]


def test_all_runs_lie_over_each_other_and_can_be_hidden(tmp_path: Path) -> None:
    lengths = {"short": 10, "long": 40, "longest": 80}
    runs = [write_run(tmp_path / name, metric_lines(n)) for name, n in lengths.items()]
    page = board(tmp_path, *runs)
    found = drawings(page)
    assert [len(list(numbered_points(one))) for one in found.values()] == [3] * 12
    assert "Entropy: mental state" in found
    ends = [points[-1] for points in numbered_points(found["Reward"])]
    assert ends[0][0] < ends[1][0] < ends[2][0] and ends[0][1] > ends[1][1] > ends[2][1]
    for i, name in enumerate(lengths):
        assert re.search(rf'id="show{i}" checked><svg.*?</svg>{name}</label>', page)
        assert f"body:has(#show{i}:not(:checked)) .run{i}{{display:none}}" in page
        assert page.count(f'<g class="run{i}">') == len(found)


@pytest.mark.parametrize("count", [1, 20])
def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path, count: int) -> None:
    runs = [
        write_run(tmp_path / f"<b>{i}", metric_lines(3), [f"run.seed={i}"]) for i in range(count)
    ]
    page = board(tmp_path, *runs)
    assert not re.search(r"<script|<link|<img|<iframe|https?:|url\(|@import", page)
    assert "<b>" not in page and "&lt;b&gt;0" in page
    ids = re.findall(r' id="(.*?)"', page)
    assert len(ids) == len(set(ids)) == (count if count > 1 else 0)
    assert ("<h2>What differs</h2>" in page) == (count > 1)
    depth: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            depth.extend([] if tag in ("meta", "input") else [tag])

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            assert tag in ("circle", "line", "path", "polyline", "rect")

        def handle_endtag(self, tag: str) -> None:
            assert depth.pop() == tag

    Balance().feed(page)
    assert depth == []


DAMAGE = {
    "torn": (
        '{"step": 21, "rew',
        "metrics.jsonl: lines that cannot be read and are left out: 1 of 23, ",
    ),
    "words": (
        "post of somebody\n[1]\n",
        "left out: 2 of 24, the first is line 23",
    ),
    "binary": ("\x00\udcff\n", "left out: 1 of 23, "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_metrics_are_named_once_and_the_rest_is_shown(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addition, said = DAMAGE[kind]
    sound, damaged = write_run(tmp_path / "sound"), write_run(tmp_path / "damaged")
    with (damaged / "metrics.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(addition)
    page = board(tmp_path, sound, damaged)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and printed[0].startswith("damaged: ") and said in printed[0]
    (note,) = re.findall("<li>(damaged: .*?)</li>", page)
    assert said in note and "somebody" not in page
    assert table(page, "Figures of the runs")[2][:3] == ["damaged", "20", "1.950"]


def test_what_is_missing_is_named_and_the_other_runs_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, empty, sound = (write_run(tmp_path / name) for name in ("bare", "empty", "sound"))
    (bare / "metrics.jsonl").unlink()
    (empty / "metrics.jsonl").write_text("")
    (empty / "config.yaml").unlink()
    scores = sound / "evaluation" / "test" / "metrics.json"
    scores.parent.mkdir(parents=True)
    scores.write_text('{"average": {"weighted_f1": 1e9}}')
    page = board(tmp_path, bare, empty, sound)
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "bare: there is no metrics.jsonl",
        "empty: there is no config.yaml",
        "empty: metrics.jsonl is empty",
        "sound: evaluation/test/metrics.json cannot be read",
    ]
    assert [row[1] for row in table(page, "Figures of the runs")[1:]] == ["-", "-", "20"]


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    lines = metric_lines(20)
    lines[10] = lines[10] | {"reward": "NaN", "time/step": "Infinity"}
    lines[-2] = lines[-2] | {"reward": "Infinity"}
    page = board(tmp_path, write_run(tmp_path / "r", lines))
    assert len(list(numbered_points(drawings(page)["Reward"]))) == 2
    assert table(page, "Figures of the runs")[1][2] == "not finite"
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["board", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    return message


def test_a_file_that_is_no_board_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = write_run(tmp_path / "run"), tmp_path / "board.html"
    page.write_text("<html>years of work</html>", encoding="utf-8")
    message = refused(capsys, run, "--output", page)
    assert "exists and is no board" in message and "nothing was touched" in message
    assert page.read_text() == "<html>years of work</html>"
    (tmp_path / "folder").mkdir()
    assert "Got a folder" in refused(capsys, run, "--output", tmp_path / "folder")
    page.unlink()
    first, second = board(tmp_path, run), board(tmp_path, run, write_run(tmp_path / "more"))
    assert first != second
    assert {one.name for one in tmp_path.iterdir()} == {"board.html", "folder", "more", "run"}


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "crpo")
    out = ("--output", tmp_path / "board.html")
    assert "run folder not found" in refused(capsys, run, tmp_path / "nothing", *out)
    assert "['crpo']" in refused(capsys, tmp_path / "runs", *out)
    many = [write_run(tmp_path / f"r{i}", metric_lines(1)) for i in range(25)]
    assert "at most 24" in refused(capsys, *many, *out)
    assert not (tmp_path / "board.html").exists()


def test_a_run_given_twice_is_shown_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert len(table(board(tmp_path, run, run / "."), "Figures of the runs")) == 2


def test_overrides_mean_nothing_to_a_board(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main(["board", str(run), "--output", str(tmp_path / "b.html"), "run.seed=1"])
    assert ended.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_one_run_has_the_panels_of_its_report(tmp_path: Path) -> None:
    found = drawings(board(tmp_path, write_run(tmp_path / "run")))
    assert len(list(numbered_points(found["Stage entropies"]))) == 5
    assert "Entropy: stimulus" not in found


def test_panels_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a file of its own: it parses, names its lines, and holds the lines of the page."""
    runs = [write_run(tmp_path / name) for name in ("<one>", "other")]
    page, folder = tmp_path / "board.html", tmp_path / "pictures"
    arguments = [*map(str, runs), "--output", str(page), "--pictures", str(folder)]
    assert main(["board", *arguments]) == 0
    files = {file.name for file in folder.iterdir()}
    assert len(files) == 12 and {"reward.svg", "entropy_mental_state.svg"} <= files
    text = (folder / "reward.svg").read_text(encoding="utf-8")
    picture = ElementTree.fromstring(text.split("\n", 1)[1])
    name = "{http://www.w3.org/2000/svg}"
    words = [one.text for one in picture.iter(f"{name}text")]
    assert words[0] == "Reward" and words[-2:] == ["<one>", "other"]
    assert picture.attrib["aria-label"].startswith("Reward. <one>: from 0.1 at step 1")
    curve = re.search(r'points="(.*?)"', page.read_text().split("<h3>Reward</h3>")[1])
    assert curve is not None and curve[1] in text
    assert not re.search(r"<script|<image|url\(|@import|href", text)

    assert main(["board", *arguments]) == 0  # ours are replaced
    (folder / "reward.svg").write_text("<svg>work of years</svg>")
    before = page.read_bytes()
    assert "exists and is no board" in refused(capsys, *arguments)
    assert (folder / "reward.svg").read_text() == "<svg>work of years</svg>"
    assert page.read_bytes() == before
