"""Where a field is put to the test: made-up sets, a tiny model, and a run with checkpoints."""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import open_model, save_base_model
from mental_r1_jax.recipe import parse_config
from mental_r1_jax.runs.training_run import fresh_state
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.optimizer import make_optimizer
from tests.every_field.toys import CORPUS

BASE = {
    "model.compute_dtype": "float32",
    "data.sets": ["Calm", "Glad"],
    "data.custom_sets": {
        "Calm": {"labels": ["Yes", "No"], "question": "Is the writer calm?"},
        "Glad": {"labels": ["Yes", "No"], "question": "Is the writer glad?"},
    },
    "rollout.prompts_per_step": 8,
    "rollout.max_prompt_length": 600,
    "rollout.max_completion_length": 64,
    "evaluate.batch_size": 8,
    "sft.batch_size": 8,
    "run.compilation_cache": None,
}


@dataclasses.dataclass(frozen=True)
class Lab:
    """What the probes share.

    Attributes:
        shared: made once: sets, built sets, models, the run with two checkpoints.
        tmp: an empty folder of this probe's own.
        patch: undone when the probe is done.
    """

    shared: Path
    tmp: Path
    patch: pytest.MonkeyPatch

    def config(self, changes: Mapping[str, Any]) -> ExperimentConfig:
        """The recipe of all probes, with changes; `{shared}` and `{tmp}` stand for the folders."""
        tree: dict[str, Any] = {}
        places = {
            "model.path": "{shared}/tiny",
            "data.root": "{shared}/posts",
            "data.tfds_dir": "{shared}/tfds",
            "run.output_dir": "{tmp}/run",
        }
        for name, value in copy.deepcopy(BASE | places | dict(changes)).items():
            node = tree
            *parents, last = name.split(".")
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = self._placed(value)
        return parse_config(yaml.safe_dump(tree), source="lab")

    def run_folder(self) -> Path:
        """A copy of the run with two checkpoints."""
        target = self.tmp / "run"
        shutil.copytree(self.shared / "run", target)
        return target

    def _placed(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{shared}", str(self.shared)).replace("{tmp}", str(self.tmp))
        return value


@functools.cache
def make_shared(base: Path) -> Path:
    """Write everything that a `Lab` shares below `base`, once a test session."""
    root = base / "lab"
    root.mkdir()
    write_posts(root / "posts", "tea")
    write_posts(root / "other_posts", "coffee")
    trace = json.dumps({"prompt": "Is it? tea", "completion": CORPUS[0]})
    (root / "traces.jsonl").write_text(trace + "\n", encoding="utf-8")
    several = [{"prompt": "Is it? tea", "completion": text} for text in CORPUS[4:24]]
    lines = "".join(json.dumps(one) + "\n" for one in several)
    (root / "several.jsonl").write_text(lines, encoding="utf-8")
    # Wide enough to fill more than one file of a megabyte.
    tiny = make_tiny_model(
        root / "tiny",
        CORPUS,
        vocab_size=700,
        hidden_size=32,
        intermediate_size=8192,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
    )
    other = shutil.copytree(tiny, root / "other")
    described = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    changed = json.dumps(described | {"intermediate_size": 64})
    (other / "config.json").write_text(changed, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        make_run(Lab(root, root, patch))
    return root


def make_run(lab: Lab) -> None:
    """A run folder with checkpoints 1 (the better one by validation) and 2."""
    config = lab.config({})
    model = open_model(config.model.path, config)
    mesh = open_mesh(config, rows={})
    state = fresh_state(model, make_optimizer(config.optimizer, 10), mesh)
    folder = config.run.output_dir
    folder.mkdir()
    save_base_model(model, folder)
    with checkpoint.open_checkpoints(folder / "checkpoints") as manager:
        for step, score in ((1, 0.9), (2, 0.1)):
            state = state.replace(params=jax.tree.map(lambda leaf: leaf + 1.0, state.params))
            checkpoint.save(manager, step, state, {}, score)
        manager.wait_until_finished()


def write_posts(root: Path, drink: str) -> None:
    """Two sets of made-up posts; Calm has a repeated post, and validation files of both names."""
    for name in ("Calm", "Glad"):
        folder = root / name
        folder.mkdir(parents=True)
        for split in ("train", "val", "dev", "test"):
            posts = [
                (f"{split} post number {i} about {drink}", "Yes" if i % 4 else "No")
                for i in range(10)
            ]
            if (name, split) == ("Calm", "train"):
                posts.append(posts[0])
            with (folder / f"{split}_clean.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *posts])
