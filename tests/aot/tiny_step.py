"""One tiny step, compiled once for eight TPU chips, and shared by the tests."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from mental_r1_jax.planning.compile import make_plan
from mental_r1_jax.planning.hlo import Program, parse_program
from mental_r1_jax.planning.plan import Plan
from mental_r1_jax.planning.topologies import parse_topology
from mental_r1_jax.programs.step_programs import ProgramCall
from mental_r1_jax.recipe import parse_config

# Every size is told from the others in the compiled program by its number: 2 prompts of a
# micro-batch on a device, 4 completions, 512 prompt tokens, 384 completion tokens, 3 layers.
MODEL = {
    **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"},
    **{"vocab_size": 3072, "hidden_size": 256, "intermediate_size": 640, "head_dim": 128},
    **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
}
RECIPE = """
model: {path: MODEL, logprob_chunk_size: 64}
data: {sets: [Stress-Synthetic]}
run: {output_dir: runs/tiny, num_steps: 10, micro_batches: 2}
rollout:
  prompts_per_step: 16
  num_generations: 4
  max_prompt_length: 512
  max_completion_length: 384
mesh: {data: 2, fsdp: 2, tensor: 2}
"""
TOPOLOGY = "v5e:2x4"


@dataclasses.dataclass(frozen=True)
class TinyStep:
    """What compiling left behind.

    Attributes:
        plan: what `mental-r1 plan` would print.
        steps: phase -> function and arguments.
        compiled: phase -> as JAX returns it.
        programs: phase -> as our reader sees it.
    """

    plan: Plan
    steps: dict[str, ProgramCall]
    compiled: dict[str, Any]
    programs: dict[str, Program]


@functools.cache
def tiny_step(folder: Any, topology: str = TOPOLOGY, *overrides: str, slices: int = 1) -> TinyStep:
    """Plan the tiny recipe in this process, and keep what it compiled."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs the `tpu` extra")
    config = parse_config(RECIPE.replace("MODEL", str(folder)), overrides, source="tiny")
    steps: dict[str, ProgramCall] = {}
    compiled: dict[str, Any] = {}
    compile_program = ProgramCall.compile

    def keep(program: ProgramCall) -> Any:
        steps[program.phase] = program
        compiled[program.phase] = compile_program(program)
        return compiled[program.phase]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramCall, "compile", keep)
        target = parse_topology(topology, slices)
        plan = make_plan(config, "tiny", target, 10, "run.num_steps")
    programs = {phase: parse_program(each.as_text()) for phase, each in compiled.items()}
    return TinyStep(plan, steps, compiled, programs)
