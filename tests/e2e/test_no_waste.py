"""What a run does besides its work: it compiles nothing later on, and can show where time goes."""

from __future__ import annotations

import gzip
from typing import Any

import jax
import pytest

from mental_r1_jax.jobs import train
from mental_r1_jax.runs.step_log import StepLog, StepRecord
from mental_r1_jax.training.metrics import read_metrics

# Python functions and parts of the objective, as a trace must name them.
SCOPES = ("token_stats", "crpo_loss", "policy_loss", "kl_penalty", "stage_entropy")
PROGRAMS = ("sample", "completion_logprobs", "train_step")


def test_nothing_is_compiled_after_the_second_step_and_a_trace_names_the_parts(
    recipe, tmp_path, monkeypatch
):
    compiled: list[str] = []
    after_step: list[int] = []

    def listen(event: str, _: float, **__: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    def defer(log: StepLog, record: StepRecord) -> None:
        after_step.append(len(compiled))
        really_defer(log, record)

    really_defer = StepLog.defer
    monkeypatch.setattr(StepLog, "defer", defer)
    config = recipe(
        tmp_path,
        rollout={
            "prompts_per_step": 8,
            "num_generations": 2,
            "max_prompt_length": 400,
            "max_completion_length": 4,
        },
        crpo={"kl_coef": 0.05, "mask_truncated_completions": True},
        run={"num_steps": 20, "profile_steps": [19, 20, 30]},
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train.run(config)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # Operations outside a compiled function would count too: each compiles a program of its own.
    assert len(after_step) == 20 and after_step[0] >= len(PROGRAMS)
    assert after_step[1] == after_step[19]
    steps = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "reward" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    for line in steps:
        assert line["time/step"] == pytest.approx(line["time/rollout"] + line["time/train"])
        assert line["time/rollout"] > 0 and line["time/train"] > 0

    # Steps that follow each other share one trace, which ends with the run.
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    (trace,) = folder.glob("*.xplane.pb")
    content = trace.read_bytes()
    for name in (*SCOPES, *PROGRAMS):
        assert name.encode() in content, name
    (events,) = folder.glob("*.trace.json.gz")
    shown = gzip.decompress(events.read_bytes()).decode()
    assert all(f'"step_num":"{step}"' in shown for step in (19, 20))
    assert '"step_num":"18"' not in shown
