"""The compiled update holds a prompt's keys once, not once for each completion.

Compilers merge and reorder axes, so an array is known by its factors: group and prompt have prime
factors that no other size has. An array whose size has both repeats something for each completion
and each prompt token. Logits would, too, if those of a whole group existed at a time.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mental_r1_jax.config import RolloutConfig
from mental_r1_jax.models.decoder import abstract_params, completion_logprobs
from mental_r1_jax.programs.step_programs import as_word, bind_sampler, traces_of
from mental_r1_jax.rollout.sampler import SamplerSettings
from mental_r1_jax.types import PromptBatch
from tests.aot.programs import CONFIG, abstract_batch, array_sizes, compiled_step, tpu_mesh
from tests.training.updates import mesh_of

GROUP = 5


def repeated(program: str, prompt: int, factor: int) -> dict[int, str]:
    """Arrays as large as keys repeated for each completion, with a factor of G and one of P."""
    least = GROUP * prompt * CONFIG.num_kv_heads * CONFIG.head_dim
    sizes = array_sizes(program)
    return {n: sizes[n] for n in sizes if n >= least and n % (GROUP * factor) == 0}


def test_a_copy_for_each_completion_would_be_seen() -> None:
    keys = jax.ShapeDtypeStruct((2, 33, 2, 64), jnp.float32)
    copied = jax.jit(lambda x: jnp.repeat(x, GROUP, axis=0)).lower(keys).compile()
    assert repeated(copied.as_text(), prompt=33, factor=11)


def test_the_plain_program_repeats_nothing() -> None:
    """P = 3 * 11, G = 5, C = 27; the logits of one completion exist at a time."""
    program = compiled_step(mesh_of(), "float32", (2, 33, GROUP, 27), chunk=9)
    assert not repeated(program.as_text(), prompt=33, factor=11)


def test_sampling_and_log_probs_repeat_nothing() -> None:
    """Prefill, the decoding loop and the pass of the reference, on CPU; P = 3 * 11, G = 5, C = 27.

    Logits of one token do have both factors: G * P a head of one prompt, less than keys would take.
    """
    mesh = mesh_of()
    batch = abstract_batch(mesh, 2, 33, GROUP, 27)
    prompts = PromptBatch(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        prompt_index=jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    weights = abstract_params(CONFIG)
    rollout = RolloutConfig(
        num_generations=GROUP,
        max_completion_length=27,
        temperature=1.0,
        top_p=0.9,
        first_cache_length=9,
        halvings=1,
    )
    settings = SamplerSettings(rollout, GROUP, False, eos_ids=(1,), pad_id=0)
    word = as_word(0)
    sample = bind_sampler(CONFIG, settings, mesh).compile(weights, prompts, word, word)
    logprobs = functools.partial(completion_logprobs, config=CONFIG, temperature=1.0, chunk_size=9)
    scored = jax.jit(logprobs).lower(weights, traces_of(batch, batch)).compile()
    for program in (sample, scored):
        assert not repeated(program.as_text(), prompt=33, factor=11)


def test_the_tpu_program_repeats_nothing() -> None:
    """P = 3 * 11 * 11, padded to 3 * 128; G = 5; T = 103, padded to 128."""
    mesh = tpu_mesh("v5e:2x2", data=2, fsdp=2)
    program = compiled_step(mesh, "bfloat16", (4, 363, GROUP, 104), chunk=52).as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program
    assert not repeated(program, prompt=363, factor=3)
