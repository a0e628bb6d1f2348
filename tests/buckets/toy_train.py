"""`train` of the toy policy as a process: real posts, session and files; no network.

python -m tests.buckets.toy_train SHARED OUTPUT_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import train
from mental_r1_jax.models.tiny import make_tiny_model
from mental_r1_jax.prediction import validation
from mental_r1_jax.runs import session
from mental_r1_jax.training.train_step import init_state
from tests.every_field import toys
from tests.every_field.lab import Lab, write_posts
from tests.every_field.loop import toy_run

SIZES = {"vocab_size": 700, "hidden_size": 32, "intermediate_size": 64, "num_layers": 1}
KEYS = {"run.num_steps": 6, "run.save_every": 2, "run.log_completions_every": 1}


def prepare(shared: Path) -> Path:
    """Posts and a tiny model for all runs."""
    write_posts(shared / "posts", "tea")
    make_tiny_model(shared / "tiny", toys.CORPUS, num_heads=2, num_kv_heads=1, **SIZES)
    return shared


def main(shared: Path, output_dir: str) -> None:
    """Train six steps, a checkpoint after every second one."""
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(shared, shared, patch)
        run = toy_run(lab, lab.config({**KEYS, "run.output_dir": output_dir}))

        def fresh(*_: Any) -> Any:
            return init_state(toys.toy_params(run.model.tokenizer), run.optimizer)

        def abstract(*_: Any) -> Any:
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), fresh()
            )

        scores = {"weighted_f1": 0.5, "macro_f1": 0.5, "well_formed": 1.0}
        patch.setattr(session, "fresh_state", fresh)
        patch.setattr(session, "abstract_state", abstract)
        patch.setattr(validation, "evaluate_posts", lambda *a, **k: ({}, []))
        patch.setattr(validation, "average_metrics", lambda by_set: scores)
        train.train(run)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except UserError as error:
        sys.exit(str(error))
