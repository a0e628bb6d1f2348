"""A whole evaluation by a tiny model: probabilities of labels, every audit, and a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.jobs import evaluate
from mental_r1_jax.text.stages import GRAMMAR


@pytest.mark.slow
def test_every_number_and_audit_in_one_evaluation(recipe, tmp_path: Path, capsys) -> None:
    tiny = recipe(tmp_path).model.path
    section = {"model": tiny, "limit_per_set": 8, "confidence": "labels"}

    def config(name: str):
        return recipe(tmp_path / "run", evaluate=section | {"output_dir": tmp_path / name})

    first = evaluate.run(config("first"))
    names = ["stages", "groups", "memory"]
    folder = evaluate.run(config("out"), against=first, audit=names)
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for one in document["sets"].values():
        assert sum(bin["n"] for bin in one["reliability"]) == 8
        assert one["risk_coverage"]["coverage"][-1] == 1.0
        assert 0 <= one["clinical"]["auroc"]["value"] <= 1
    assert document["sets"]["Depression-Synthetic"]["ordinal"]["mae"]["value"] >= 0
    found = {name: json.loads((folder / f"audit_{name}.json").read_text()) for name in names}
    stages = found["stages"]["sets"]["Stress-Synthetic"]["stages"]
    assert list(stages) == [stage.name for stage in GRAMMAR.stages]
    assert set(found["groups"]["sets"]["Stress-Synthetic"]) > {"n", "gender", "age"}
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    # The same weights answer alike.
    assert all(one["flips"] == 0 for one in comparison["sets"].values())
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>Audit") == 3 and "Clinical evaluation" in page
    shown = page + capsys.readouterr().out
    for path in folder.iterdir():
        shown += path.read_text(encoding="utf-8")
    posts = load_examples(config("out"), "test")
    for post in (post for of_set in posts.values() for post in of_set):
        assert post.text not in shown
