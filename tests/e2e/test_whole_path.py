"""Cold start -> CRPO -> evaluation -> export -> transformers, and a reward that is learnt."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mental_r1_jax.data.loading import load_examples
from mental_r1_jax.errors import UserError
from mental_r1_jax.jobs import evaluate, export, sft, train
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import load_weights, open_model
from mental_r1_jax.prediction.predictor import make_predictor, predict
from mental_r1_jax.release.export_manifest import read_export
from mental_r1_jax.rollout.collect import render_prompts
from mental_r1_jax.runs import training_run
from mental_r1_jax.training.metrics import read_metrics


def learning_curve(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder / "metrics.jsonl") if name in line]


def test_a_toy_reward_is_learnt_and_without_kl_no_reference_is_computed(
    recipe, tmp_path, monkeypatch
):
    config = recipe(
        tmp_path / "run",
        rollout={
            "prompts_per_step": 8,
            "num_generations": 8,
            "max_prompt_length": 400,
            "max_completion_length": 8,
            "temperature": 1.0,
        },
        rewards={
            "format_weight": 0.0,
            "answer_weight": 0.0,
            "custom": {"tests.e2e.rewards:vowels": 1.0},
        },
        crpo={"kl_coef": 0.0},
        optimizer={"learning_rate": 2e-2, "schedule": "constant"},
        run={"num_steps": 25},
    )
    made = []
    opened = training_run.open_training_run
    monkeypatch.setattr(train, "open_training_run", lambda c: made.append(opened(c)) or made[0])
    loads = []
    monkeypatch.setattr(
        training_run, "load_weights", lambda *a: loads.append(a) or load_weights(*a)
    )
    train.run(config)
    rewards = learning_curve(tmp_path / "run", "reward")
    assert len(rewards) == 25
    assert np.mean(rewards[:3]) < 0.3  # vowels are a quarter of what a random model writes
    assert np.mean(rewards[-3:]) > 0.8
    own = learning_curve(tmp_path / "run", "rewards/tests.e2e.rewards:vowels/mean")
    assert own == pytest.approx(rewards)
    # kl_coef = 0: the start weights were read once (to train), and no log-probs were computed.
    assert len(loads) == 1
    assert made[0].programs.score.compiled() == 0
    assert made[0].programs.compiled() == 2
    assert set(learning_curve(tmp_path / "run", "loss/kl")) == {0.0}
    assert "kl" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    # What the sampler and the trainer compute for the same tokens agrees, in every step.
    assert max(learning_curve(tmp_path / "run", "sampler_drift/max")) < 1e-4


def test_from_cold_start_to_a_released_folder(recipe, tmp_path):
    lengths = {
        "prompts_per_step": 8,
        "num_generations": 2,
        "max_prompt_length": 400,
        "max_completion_length": 160,
        "temperature": 1.0,
    }
    cold = recipe(tmp_path / "cold", rollout=lengths, sft=COLD_START)
    sft.run(cold)
    losses = learning_curve(tmp_path / "cold", "loss")
    assert len(losses) == COLD_START["num_steps"] and losses[-1] < 0.75 * losses[0]

    config = recipe(
        tmp_path / "crpo",
        model={"path": str(tmp_path / "cold"), "compute_dtype": "float32"},
        rollout=lengths,
        export={"verify": find_spec("torch") is not None, "dtype": "float32"},
    )
    train.run(config)
    assert len(learning_curve(tmp_path / "crpo", "reward")) == 2
    # The run starts from the cold start's weights, not from the random model's.
    of_the_random_model = learning_curve(tmp_path / "cold", "entropy")[0]
    assert learning_curve(tmp_path / "crpo", "entropy")[0] < 0.9 * of_the_random_model

    report = evaluate.run(config)
    document = json.loads((report / "metrics.json").read_text())
    assert set(document["sets"]) == set(config.data.sets)
    assert document["checkpoint"] == 2
    assert {path.name for path in report.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "report.html",
    }
    page = (report / "report.html").read_text()
    assert "<dt>checkpoint</dt><dd>step 2</dd>" in page
    assert "<h2>Training curves</h2>" in page and "<h3>Stage entropies</h3>" in page

    folder = export.run(config)
    assert folder == tmp_path / "crpo" / "hf"
    assert not (tmp_path / "crpo" / ".hf.partial").exists()
    # As `push` looks at it before it sends anything: whole, and nothing but a model.
    assert {file.path for file in read_export(folder).files} == set(folder.iterdir())
    card = (folder / "README.md").read_text()
    assert all(name in card for name in config.data.sets)
    assert "| checkpoint | step 2 |" in card and "have not been evaluated" not in card
    posts = list(load_examples(config, "test").values())[0]
    ours, theirs = our_text(config, posts[3]), transformers_text(folder, config, posts[3])
    assert ours == theirs and len(ours) > 20

    # A second export replaces the first; a folder of somebody else's is refused and left alone.
    export.run(config)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    taken = config.export.model_copy(update={"output_dir": foreign})
    with pytest.raises(UserError, match="was not made by"):
        export.run(config.model_copy(update={"export": taken}))
    assert [(p.name, p.read_text()) for p in foreign.iterdir()] == [("thesis.txt", "mine")]


COLD_START = {
    "batch_size": 8,
    "num_steps": 12,
    "traces_per_set": 16,
    "optimizer": {"learning_rate": 2e-2},
}


def our_text(config, post) -> str:
    """Greedy text of the run's own checkpoint."""
    mesh = open_mesh(config, rows={})
    model = open_model(str(config.run.output_dir), config)
    params = load_weights(model, mesh, which="best")
    predictor = make_predictor(model, config, mesh, "evaluate")
    (prediction,) = predict(predictor, params, [post], {post.set_name: ("Yes", "No")})
    return prediction.completion


def transformers_text(folder: Path, config, post) -> str:
    """Greedy text of the exported folder, by transformers alone."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    tokenizer = open_model(str(folder), config).tokenizer
    prompt = render_prompts(tokenizer, [post], config.rollout.max_prompt_length)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([list(prompt.ids)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True)


def test_weights_of_a_run_survive_the_round_trip_through_the_released_folder(recipe, tmp_path):
    """bfloat16, several files: every weight is the run's own, rounded once."""
    config = recipe(tmp_path / "run", sft={"batch_size": 8, "num_steps": 1, "traces_per_set": 4})
    config = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"max_completion_length": 160})}
    )
    sft.run(config)
    # As tpu_scripts/export.sh pulls a run: to another place, without the optimizer.
    (optimizer,) = (tmp_path / "run/checkpoints").glob("*/optimizer")
    shutil.rmtree(optimizer)
    pulled = (tmp_path / "run").rename(tmp_path / "pulled")
    config = config.model_copy(update={"run": config.run.model_copy(update={"output_dir": pulled})})
    folder = export.run(config)
    mesh = open_mesh(config, rows={})
    own = load_weights(open_model(str(pulled), config), mesh)
    released = load_weights(open_model(str(folder), config), mesh)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.asarray(a.astype(jnp.bfloat16).astype(jnp.float32)), np.asarray(b)
        ),
        own,
        released,
    )
