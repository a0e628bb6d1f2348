"""The cells of Study B that the repository holds: what docs/results.md says of them is theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mental_r1_jax.jobs import study as job
from mental_r1_jax.study.cells import plan_study
from mental_r1_jax.study.parts import join_cells
from mental_r1_jax.study.schema import load_study

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "docs" / "results" / "study_real_posts.jsonl"
# What the page calls the arms.
ROWS = {
    "cold_start": "cold start",
    "sft": "SFT, as many completions",
    "grpo": "GRPO",
    "dapo": "DAPO",
    "crpo": "CRPO, M=0.001",
    "stage_target": "stage targets, M=0.001",
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `study.json` that the committed cells give; they are refused if a recipe has changed."""
    folder = tmp_path_factory.mktemp("study") / "study"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        study = load_study(ROOT / "configs" / "study_real_posts.yaml")
        study = study.model_copy(update={"output_dir": folder})
        plan = plan_study(study)
        job.write_results(study, plan, join_cells([CELLS], plan, folder))
    return dict(json.loads((folder / "study.json").read_text(encoding="utf-8")))


def test_no_label_and_no_row_is_in_the_file() -> None:
    text = CELLS.read_text(encoding="utf-8")
    assert not re.search(r'"(Work|School|Yes|No|Other)"', text)
    assert all(json.loads(line)["answers"] == {} for line in text.splitlines())


@pytest.mark.parametrize("arm", ROWS)
def test_the_page_has_the_scores_of_the_cells(document: dict[str, Any], arm: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition("## Study B")[2].partition("\n## ")[0]
    of_arm = [line for line in section.splitlines() if line.startswith(f"| {ROWS[arm]} |")]
    first, second = ([column.strip() for column in row.strip("|").split("|")] for row in of_arm)
    for one in document["cells"].values():
        if one["arm"] == arm:
            assert first[1 + one["seed"]] == f"{100 * one['scores']['weighted_f1']:.1f}"
    for seed in range(3):
        assert (first[1 + seed] == "missing") == (f"{arm}-seed{seed}" in document["missing"])
    scores = document["arms"][arm]["scores"]
    for name, shown in (
        ("weighted_f1", first),
        ("macro_f1", second),
        ("balanced_accuracy", second),
    ):
        low, high = scores[name]["interval_over_seeds_and_posts"]
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in shown
