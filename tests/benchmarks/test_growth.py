"""The law of cost by hand, and the measurement of it at toy size."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_step import FOLDER, run

HAND = """
import json, sys
sys.path.insert(0, sys.argv[1])
import growth
one = growth.Setting(prompts=2, group=3, prompt=10, completion=4, vocabulary=50, width=64, layers=2)
common = growth.Setting()
longer = growth.Setting(prompt=768)
print(json.dumps({
    "layer_numbers": one.layer_numbers,
    "ours": growth.forward_operations(one, 1),
    "copied": growth.forward_operations(one, 3),
    "same": growth.expected(growth.TRL, common, 7.0),
    "longer": [growth.expected(who, longer, 1.0) for who in (growth.OURS, growth.TRL)],
}))
"""


def test_the_law_by_hand() -> None:
    done = run(sys.executable, "-c", HAND, FOLDER)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Width 64: one head for queries, keys, values and outputs, and a feed-forward part of 172.
    numbers = 2 * 64 * (4 * 64 + 3 * 172)
    assert found["layer_numbers"] == numbers
    # 2 prompts of 10 tokens, run once or three times, with 3 x 4 completion tokens each.
    for name, copies in (("ours", 1), ("copied", 3)):
        layers = 2 * numbers * 2 * (copies * 10 + 12)
        head = 2 * 64 * 50 * 2 * 12
        # A token sees half of the prompt in the prompt; prompt and half the completion behind it.
        attention = 4 * 2 * 64 * 2 * (copies * 50 + 12 * (10 + 2))
        assert found[name] == layers + head + attention
    assert found["same"] == 7.0
    ours, theirs = found["longer"]
    assert 1 < ours < theirs < 2


def test_the_page_has_the_figures() -> None:
    """Every row of the table in benchmarks/README.md against benchmarks/growth.json."""
    names = {"G": "group", "P": "prompt", "C": "completion", "B": "prompts", "V": "vocabulary"}
    common = {"prompts": 1, "group": 8, "prompt": 384, "completion": 256, "vocabulary": 8192}
    common |= {"width": 256, "layers": 4}
    shapes = {"1.4": (128, 2), "5.0": (256, 4), "16.2": (384, 8), "39.0": (512, 12)}
    figures = json.loads((FOLDER / "growth.json").read_text(encoding="utf-8"))
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    section = page.partition("## How cost grows")[2].partition("\n## ")[0]
    row = (
        r"^\| (?:(\w) = ([\d,]+)|([\d.]+) million numbers) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    )
    rows = re.findall(row, section, re.MULTILINE)
    for name, value, size, *shown in rows:
        if name:
            setting = common | {names[name]: int(value.replace(",", ""))}
        else:
            setting = common | dict(zip(("width", "layers"), shapes[size], strict=True))
        ours, theirs = (
            figures[f"{who} {json.dumps(setting)}"]["seconds"]["step"]
            for who in ("this project", "TRL")
        )
        assert shown == [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}"]
    assert len(rows) == len(figures) // 2 + 5  # the common setting stands in each of six axes


@pytest.mark.slow
def test_a_stopped_measurement_goes_on_and_is_drawn(tmp_path: Path) -> None:
    small = "growth.Setting.__init__.__defaults__ = (1, 2, 8, 4, 300, 64, 1)"
    values = "growth.AXES['group'] = ('G', ({'group': 2}, {'group': 3}))"
    script = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import growth; {small}; {values}; "
        "growth.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "--out", tmp_path / "growth", "--axes", "group"]
    command += ["--steps", "1"]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert len(first) == 2 and all(one["seconds"]["step"] > 0 for one in first.values())
    assert "| group | 2 | this project |" in done.stdout and "| 1.00 |" in done.stdout
    picture = (tmp_path / "growth.svg").read_bytes()
    again = run(*command)
    assert again.returncode == 0 and "this project {" not in again.stdout  # nothing was measured
    assert (tmp_path / "growth.svg").read_bytes() == picture

    # What does not fit into memory is said, and is no figure.
    command[command.index("--out") + 1] = tmp_path / "none"
    refused = run(*command, "--memory", "0.2")
    assert refused.returncode == 0
    assert all("failed" in one for one in json.loads((tmp_path / "none.json").read_text()).values())
