"""The cells that the repository holds: what docs/results.md says of their studies is theirs."""

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
# Study -> its section of the page, and what the page calls its arms.
STUDIES = {
    "study_real_posts": (
        "## Study B",
        {
            "cold_start": "cold start",
            "sft": "SFT, as many completions",
            "grpo": "GRPO",
            "dapo": "DAPO",
            "crpo": "CRPO, M=0.001",
            "stage_target": "stage targets, M=0.001",
        },
    ),
    "study_ablations": (
        "## Study C",
        {
            "cold_start": "cold start",
            "crpo": "CRPO, M=0.001",
            "no_stage_entropy": "no stage entropy",
            "uniform_reward": "uniform reward",
            "cold_start_untold": "cold start, no stages in the prompt",
            "untold": "no stages in the prompt",
        },
    ),
}
ARMS = [(study, arm) for study, (_, arms) in STUDIES.items() for arm in arms]


def cells_of(study: str) -> Path:
    return ROOT / "docs" / "results" / f"{study}.jsonl"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The `study.json` that committed cells give; they are refused if a recipe has changed."""
    found = {}
    for name in STUDIES:
        folder = tmp_path_factory.mktemp(name) / "study"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            study = load_study(ROOT / "configs" / f"{name}.yaml")
            study = study.model_copy(update={"output_dir": folder})
            plan = plan_study(study)
            job.write_results(study, plan, join_cells([cells_of(name)], plan, folder))
        found[name] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_no_label_and_no_row_is_in_the_file(study: str) -> None:
    text = cells_of(study).read_text(encoding="utf-8")
    assert not re.search(r'"(Work|School|Yes|No|Other)"', text)
    assert all(json.loads(line)["answers"] == {} for line in text.splitlines())


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_the_page_has_the_scores_of_the_cells(
    documents: dict[str, dict[str, Any]], study: str, arm: str
) -> None:
    document, (heading, names) = documents[study], STUDIES[study]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition(heading)[2].partition("\n## ")[0]
    of_arm = [line for line in section.splitlines() if line.startswith(f"| {names[arm]} |")]
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
