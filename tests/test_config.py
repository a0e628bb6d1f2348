"""Every number of a recipe is checked before anything is compiled or downloaded."""

from __future__ import annotations

import pydantic
import pytest
import yaml

from mental_r1_jax.config import CrpoConfig, ExperimentConfig, OptimizerConfig, RolloutConfig
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, parse_config

MINIMAL = "model: {path: somewhere}\ndata: {sets: [A, B]}\nrun: {output_dir: out}\n"
MINE = "data.custom_sets.MINE"
OF_FILE = f"{MINE}={{labels: [a, b], files: posts.csv}}"


def recipe(*overrides: str) -> ExperimentConfig:
    return parse_config(MINIMAL, overrides, source="test")


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe(*overrides)
    return str(caught.value)


# key, a value that must be refused. Each message names the key and the value.
BAD_VALUES = [
    ("model.compute_dtype", "float16"),
    ("model.remat", "3"),
    ("model.decode_kernel", "sometimes"),
    ("model.logprob_chunk_size", "0"),
    ("data.sets", "[]"),
    ("data.on_duplicate", "merge"),
    ("data.absurd_post_chars", "0"),
    ("data.limit_per_set", "-1"),
    ("data.label_noise", "1.5"),
    ("data.custom_sets.MINE.labels", "[one]"),
    ("data.custom_sets.MINE.validation_file", "valid"),
    ("data.custom_sets.MINE.format", "xlsx"),
    ("data.custom_sets.MINE.layout", "rows"),
    ("data.custom_sets.MINE.columns.text", "3"),
    ("data.custom_sets.MINE.text_columns", "title"),
    ("data.custom_sets.MINE.label_map", "[0]"),
    ("data.custom_sets.MINE.split.validation", "0"),
    ("data.custom_sets.MINE.split.test", "1.0"),
    ("data.custom_sets.MINE.split.seed", "-1"),
    ("data.custom_sets.MINE.whole_groups", "perhaps"),
    ("data.custom_sets.MINE.topics", "[sleep]"),
    ("data.custom_sets.MINE.topic_separator", "''"),
    ("sft.free_reasoning", "all"),
    ("rollout.prompts_per_step", "0"),
    ("rollout.prompts_per_step", "2.5"),
    ("rollout.num_generations", "1"),
    ("rollout.max_prompt_length", "0"),
    ("rollout.prompt_length_buckets", "[0]"),
    ("rollout.max_completion_length", "1"),
    ("rollout.temperature", "0"),
    ("rollout.temperature", ".nan"),
    ("rollout.top_p", "0"),
    ("rollout.top_p", "1.01"),
    ("rollout.top_k", "0"),
    ("rollout.keep_groups", "some"),
    ("rollout.max_rounds", "0"),
    ("rollout.max_rounds", "256"),
    ("rollout.first_cache_length", "0"),
    ("rollout.halvings", "-1"),
    ("rewards.format_weight", "-1"),
    ("rewards.answer_weight", "-0.5"),
    ("rewards.answer_weighting", "square"),
    ("rewards.answer_match", "fuzzy"),
    ("rewards.timeout_s", "0"),
    ("rewards.answer_scale", "linear"),
    ("rewards.under_call", "0.5"),
    ("rewards.overlong_weight", "-1"),
    ("rewards.overlong_cushion", "0"),
    ("crpo.scale_rewards", "std"),
    ("crpo.advantage_baseline", "median"),
    ("crpo.clip_epsilon_low", "1.0"),
    ("crpo.clip_epsilon_low", "-0.1"),
    ("crpo.clip_epsilon_high", "-0.1"),
    ("crpo.dual_clip", "1.0"),
    ("crpo.importance_level", "word"),
    ("crpo.policy_loss", "ppo"),
    ("crpo.policy_entropy_share", "0"),
    ("crpo.policy_entropy_share", "1.5"),
    ("crpo.sampler_correction", "clip"),
    ("crpo.kl_coef", "-0.01"),
    ("crpo.kl_coef", ".inf"),
    ("crpo.kl_estimator", "k4"),
    ("crpo.kl_in", "both"),
    ("crpo.aggregation", "mean"),
    ("crpo.stage_entropy_rule", "linear"),
    ("crpo.stage_entropy_scale", "-0.1"),
    ("crpo.stage_entropy_threshold", ".inf"),
    ("crpo.stage_entropy_coefs", "[]"),
    ("crpo.stage_entropy_targets", "[]"),
    ("crpo.stage_entropy_target_unit", "bits"),
    ("crpo.stage_entropy_start_steps", "0"),
    ("crpo.stage_entropy_step", "-0.1"),
    ("crpo.stage_entropy_dead_zone", "1.0"),
    ("crpo.stage_entropy_mean", "some"),
    ("crpo.entropy_bonus_coef", "-1"),
    ("crpo.entropy_bonus_rule", "linear"),
    ("crpo.entropy_bonus_target", "0"),
    ("crpo.entropy_bonus_step", "-1"),
    ("crpo.entropy_bonus_max", "0"),
    ("crpo.num_iterations", "0"),
    ("optimizer.name", "sgd"),
    ("optimizer.first_moment", "float16"),
    ("optimizer.offload_moments", "some"),
    ("optimizer.learning_rate", "0"),
    ("optimizer.learning_rate", "fast"),
    ("optimizer.schedule", "step"),
    ("optimizer.warmup_steps", "-1"),
    ("optimizer.weight_decay", "-0.1"),
    ("optimizer.beta1", "1.0"),
    ("optimizer.beta2", "-0.1"),
    ("optimizer.epsilon", "0"),
    ("optimizer.max_grad_norm", "0"),
    ("sft.traces_per_set", "0"),
    ("sft.label_noise", "1.5"),
    ("sft.batch_size", "0"),
    ("sft.num_steps", "0"),
    ("sft.optimizer.learning_rate", "-1"),
    ("evaluate.split", "train"),
    ("evaluate.limit_per_set", "0"),
    ("evaluate.batch_size", "0"),
    ("evaluate.num_votes", "0"),
    ("evaluate.confidence", "logits"),
    ("evaluate.bootstrap_samples", "0"),
    ("evaluate.reading_room", "-1"),
    ("export.checkpoint", "newest"),
    ("export.checkpoint", "-1"),
    ("export.dtype", "float16"),
    ("export.max_shard_megabytes", "0"),
    ("export.gguf", "q4_k_m"),
    ("run.patience", "0"),
    ("run.max_hours", "0"),
    ("mesh.data", "0"),
    ("mesh.fsdp", "0"),
    ("mesh.tensor", "-2"),
    ("run.seed", "-1"),
    ("run.num_steps", "0"),
    ("run.num_epochs", "0"),
    ("run.micro_batches", "0"),
    ("run.save_every", "0"),
    ("run.keep_checkpoints", "0"),
    ("run.eval_every", "-1"),
    ("run.eval_limit_per_set", "0"),
    ("run.log_completions_every", "-1"),
    ("run.profile_steps", "[0]"),
    ("text.language", "klingon"),
    ("text.wording", "3"),
    ("text.grammar", "3"),
    ("text.stages_in_prompt", "sometimes"),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=[f"{k}={v}" for k, v in BAD_VALUES])
def test_a_bad_value_is_refused_with_key_and_value(key: str, value: str) -> None:
    labelled = ".MINE." in key and not key.endswith(".labels")
    extra = ["data.custom_sets.MINE.labels=[a, b]"] if labelled else []
    text = message(*extra, f"{key}={value}")
    assert key in text
    got = yaml.safe_load(value)
    assert f"got {got[0] if key.endswith(('buckets', 'profile_steps')) else got!r}" in text


def test_every_number_has_a_bad_value_in_the_table() -> None:
    tested = {key for key, _ in BAD_VALUES}
    for section, field in ExperimentConfig.model_fields.items():
        for name, inner in field.annotation.model_fields.items():
            is_number = "int" in str(inner.annotation) or "float" in str(inner.annotation)
            if is_number and f"{section}.{name}" != "rewards.custom":
                assert f"{section}.{name}" in tested


PATHS = [
    *("model.path", "model.lora.base", "evaluate.model"),  # or a name on the hub
    *(
        f"{section}.{name}"
        for section, field in ExperimentConfig.model_fields.items()
        for name, inner in field.annotation.model_fields.items()
        if "Path" in str(inner.annotation)
    ),
]


# May name a run in a bucket of Google's.
RUNS = ("run.output_dir", "model.path", "model.lora.base", "evaluate.model")


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("address", ["gs://bucket/runs/first", "file:///tmp/x", " S3://b/x"])
def test_an_address_is_not_taken_for_a_folder_of_that_name(key: str, address: str) -> None:
    if key in RUNS and address.startswith("gs:"):
        address = "az://bucket/runs/first"
    text = message(f"{key}={address}")
    assert f"{key}: {address.strip()!r} is an address" in text
    assert ("mount the bucket" in text) == (address[:3] in ("gs:", " S3"))


@pytest.mark.parametrize("key", RUNS)
def test_a_run_may_be_in_a_bucket_and_is_written_as_it_was_given(key: str) -> None:
    given = [f"{key}=gs://bucket/runs/first/"]
    config = parse_config(MINIMAL, given, source="test")
    assert "gs://bucket/runs/first\n" in dump_config(config)
    assert parse_config(dump_config(config), source="test") == config
    assert "gs://BUCKET/RUN" in message(f"{key}=gs://bucket")


def test_posts_go_into_a_bucket_only_where_its_owner_says_that_it_is_closed() -> None:
    there, closed = "run.output_dir=gs://bucket/run", "run.closed_bucket=true"
    for shows in ("run.redact_completions=false", "evaluate.include_text=true"):
        assert "run.closed_bucket=true" in message(there, shows)
        parse_config(MINIMAL, [there, shows, closed], source="test")
        parse_config(MINIMAL, [shows], source="test")
    elsewhere = ["evaluate.include_text=true", "evaluate.output_dir=here"]
    parse_config(MINIMAL, [there, *elsewhere], source="test")


def test_paths_with_a_colon_and_names_on_the_hub_are_no_addresses() -> None:
    paths = ["run.output_dir=a:b//c", "model.path=Qwen/Qwen3-8B", "data.root=/mnt/gs/x"]
    config = parse_config(MINIMAL, paths, source="test")
    assert (str(config.run.output_dir), config.model.path) == ("a:b/c", "Qwen/Qwen3-8B")


def test_empty_groups_cannot_stand_in_the_spread_of_a_batch() -> None:
    text = message("rollout.keep_groups=reward", "crpo.scale_rewards=batch")
    assert "scale_rewards=batch" in text and "keep_groups=reward" in text


def test_all_problems_are_reported_at_once() -> None:
    text = message("crpo.kl_coef=-1", "run.seed=-1", "rollout.tempurature=1")
    assert "3 problem(s)" in text
    assert all(key in text for key in ("crpo.kl_coef", "run.seed", "rollout.tempurature"))


def test_required_keys_are_named() -> None:
    with pytest.raises(UserError, match=r"model is required(.|\n)*run\.output_dir is required"):
        parse_config("data: {sets: [A]}\nrun: {seed: 1}", source="test")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["rollout.prompts_per_step=30", "run.micro_batches=4"],
            ["rollout.prompts_per_step=30", "multiple of run.micro_batches=4"],
        ),
        (
            ["sft.batch_size=6", "run.micro_batches=4"],
            ["sft.batch_size=6", "multiple of run.micro_batches=4"],
        ),
        (
            ["rollout.prompt_length_buckets=[128, 512]"],
            ["prompt_length_buckets", "max_prompt_length=512", "[512]"],
        ),
        (["crpo.stage_entropy_rule=explicit"], ["stage_entropy_coefs=None"]),
        (["crpo.stage_entropy_coefs=[1, 2, 3, 4, 5]"], ["stage_entropy_rule='tanh'"]),
        (["rewards.overlong_cushion=600"], ["overlong_cushion=600", "max_completion_length=512"]),
        (["evaluate.confidence=votes"], ["evaluate.confidence=votes", "num_votes=1"]),
        (["data.sets=[A, A]"], ["every set may be named once", "['A', 'A']"]),
        ([OF_FILE, f"{MINE}.label_map={{0: c}}"], ["label_map leads to ['c']"]),
        ([OF_FILE, f"{MINE}.label_map={{0: a, '0': b}}"], ["every key must be another text"]),
        (
            [f"{MINE}.labels=[a, b]", f"{MINE}.columns.text=t"],
            ["['columns'] say how `files` are read", "no files"],
        ),
        ([OF_FILE, f"{MINE}.validation_file=dev"], ["belongs to the paper's layout"]),
        ([OF_FILE, f"{MINE}.files={{all: a, test: t}}"], ["test, or all of them", "'test': 't'"]),
        ([OF_FILE, f"{MINE}.files={{train: t}}"], ["or all of them in one file", "'train': 't'"]),
        ([OF_FILE, f"{MINE}.columns.label=y", f"{MINE}.layout=chat"], ["layout=chat knows"]),
        ([OF_FILE, f"{MINE}.columns.text=t", f"{MINE}.text_columns=[t, u]"], ["set one of them"]),
        ([OF_FILE, f"{MINE}.columns.question=q", f"{MINE}.question=Q"], ["asked of every post"]),
        (
            ["crpo.stage_entropy_rule=explicit", "crpo.stage_entropy_coefs=[0, 0, 0]"],
            ["crpo.stage_entropy_coefs", "each of the 5 stages", "got [0.0, 0.0, 0.0]"],
        ),
        (
            ["crpo.stage_entropy_targets=[1, 1, 1]"],
            ["crpo.stage_entropy_targets", "each of the 5 stages", "got [1.0, 1.0, 1.0]"],
        ),
    ],
)
def test_values_that_contradict_each_other(overrides: list[str], parts: list[str]) -> None:
    text = message(*overrides)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_entropy_rule": "explicit", "stage_entropy_coefs": ()}, "at least 1 item"),
        ({"stage_entropy_rule": "explicit"}, "go together"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"dual_clip": 3.0, "policy_loss": "cispo"}, "dual_clip=3.0 bounds.*set dual_clip to null"),
        ({"stage_entropy_rule": "target", "stage_entropy_coefs": (0.1,) * 5}, "within"),
        ({"entropy_bonus_rule": "adaptive", "entropy_bonus_coef": 0.1}, "must not exceed"),
        ({"stage_entropy_targets": (1.0, 1.0, 0.0, 1.0, 1.0)}, "greater than 0"),
    ],
)
def test_an_objective_that_contradicts_itself_cannot_be_made(
    changes: dict[str, object], message: str
) -> None:
    """Also without a recipe: the loss takes this very section and checks nothing again."""
    with pytest.raises(pydantic.ValidationError, match=message):
        CrpoConfig(**changes)


def test_the_defaults_are_the_paper_s() -> None:
    config = recipe()
    rollout, crpo, optimizer = config.rollout, config.crpo, config.optimizer
    assert (rollout.prompts_per_step, rollout.num_generations) == (128, 4)
    assert (rollout.max_prompt_length, rollout.max_completion_length) == (512, 512)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (0.85, 0.95, None)
    assert (crpo.stage_entropy_rule, crpo.stage_entropy_scale) == ("tanh", 0.06)
    assert (crpo.stage_entropy_threshold, crpo.stage_entropy_mean) == (3.5, "all")
    assert (crpo.kl_coef, crpo.kl_estimator, crpo.aggregation) == (0.01, "k3", "token")
    assert (crpo.clip_epsilon_low, crpo.clip_epsilon_high, crpo.num_iterations) == (0.2, 0.2, 1)
    assert (crpo.scale_rewards, crpo.advantage_baseline) == ("group", "mean")
    assert (optimizer.learning_rate, optimizer.schedule) == (5e-6, "linear")
    assert (optimizer.warmup_steps, optimizer.max_grad_norm) == (0, 1.0)
    assert (config.rewards.format_weight, config.rewards.answer_weight) == (1.0, 1.0)
    assert (config.rewards.answer_weighting, config.rewards.answer_match) == ("balanced", "prefix")
    assert config.run.num_epochs == 1.0


def test_sections_are_frozen() -> None:
    config = recipe()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.crpo.kl_coef = 1.0
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.crpo = CrpoConfig()


def test_prompt_lengths_are_ascending_and_end_with_the_maximum() -> None:
    rollout = RolloutConfig(prompt_length_buckets=(256, 128), max_prompt_length=384)
    assert rollout.prompt_lengths == (128, 256, 384)


def test_the_cold_start_has_an_optimizer_of_its_own() -> None:
    config = recipe("sft.optimizer.schedule=cosine")
    assert config.sft.optimizer == OptimizerConfig(learning_rate=5e-6, schedule="cosine")
    assert recipe().sft.optimizer.learning_rate == 1e-4
