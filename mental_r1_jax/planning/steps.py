"""How many steps a planned run has."""

from __future__ import annotations

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BENCHMARKS, SYNTHETIC_SPECS
from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.runs.training_run import count_steps

# Posts of the paper's eight training sets, as its 144 steps of 128 prompts imply.
PAPER_POSTS = 144 * 128


def planned_steps(config: ExperimentConfig) -> tuple[int, str]:
    """Steps of the run, and where the number comes from."""
    if config.run.num_steps is not None:
        return config.run.num_steps, "run.num_steps"
    own = {name for name, one in config.data.custom_sets.items() if one.files is not None}
    at_hand = set(config.data.sets) <= own | set(SYNTHETIC_SPECS)
    if config.data.root is not None or at_hand:
        return count_steps(config, load_examples(config, "train")), "from the posts"
    posts = round(PAPER_POSTS * len(config.data.sets) / len(BENCHMARKS))
    steps = max(1, round(config.run.num_epochs * posts / config.rollout.prompts_per_step))
    return steps, f"for {posts:,} posts, as the paper's sets have; data.root is not set"
