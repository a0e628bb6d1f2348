"""The arithmetic of a step, from shapes alone: operations, and bytes moved to and from memory.

Counting follows the usual convention: a matrix product of a token with a matrix of n numbers is 2n
operations, attention counts the keys that a token may see, and nothing else counts. The compiler's
own count is of no use here: it counts the body of a loop once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.footprint import cache_bytes, moment_bytes
from mental_r1_jax.models.decoder import DecoderConfig, adapter_count, parameter_count


@dataclass(frozen=True)
class Workload:
    """One step over all devices; every prompt and completion is taken at its greatest length.

    Attributes:
        config: the recipe.
        model: architecture.
        mesh: axis -> size.
    """

    config: ExperimentConfig
    model: DecoderConfig
    mesh: Mapping[str, int]

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def row_shards(self) -> int:
        """Shares into which the rows of a batch are divided."""
        return self.mesh["data"] * self.mesh["fsdp"]

    @property
    def completion_tokens(self) -> int:
        """Tokens sampled in a step."""
        rollout = self.config.rollout
        return rollout.prompts_per_step * rollout.num_generations * rollout.max_completion_length

    @property
    def tokens(self) -> int:
        """Tokens that a pass over prompts and completions computes; a prompt counts once."""
        rollout = self.config.rollout
        return rollout.prompts_per_step * rollout.max_prompt_length + self.completion_tokens

    @property
    def runs(self) -> dict[str, int]:
        """Phase -> how often a step runs its program.

        The reference scores completions where there is a KL penalty, the policy itself where a
        rollout is used for several updates.
        """
        crpo = self.config.crpo
        scored = (crpo.kl_coef > 0) + (crpo.num_iterations > 1)
        runs = {"rollout": 1, "reference": scored, "update": crpo.num_iterations}
        return {phase: times for phase, times in runs.items() if times}


def layer_matrix_size(model: DecoderConfig) -> int:
    """Numbers in the matrices of all layers."""
    heads = 2 * model.num_heads + 2 * model.num_kv_heads
    one = model.hidden_size * (heads * model.head_dim + 3 * model.intermediate_size)
    return model.num_layers * one


def head_size(model: DecoderConfig) -> int:
    """Numbers in the output projection."""
    return model.hidden_size * model.vocab_size


def matrix_flops(model: DecoderConfig, tokens: float, sampled: float) -> float:
    """Operations of the matrix products of one forward pass, attention's own not included.

    Args:
        model: architecture.
        tokens: tokens that pass through the layers.
        sampled: tokens whose logits the head computes; prompts need none.
    """
    return 2.0 * (layer_matrix_size(model) * tokens + head_size(model) * sampled)


def attention_flops(work: Workload) -> float:
    """Operations of attention in one forward pass: query-key and weight-value products."""
    model, rollout = work.model, work.config.rollout
    p, c = rollout.max_prompt_length, rollout.max_completion_length
    one_prompt = p * (p + 1) / 2 + rollout.num_generations * c * (p + (c + 1) / 2)
    one_key = 4.0 * model.num_layers * model.num_heads * model.head_dim
    return one_key * rollout.prompts_per_step * one_prompt


def phase_flops(work: Workload) -> dict[str, tuple[float, float]]:
    """Phase -> (operations that the method needs, operations with those done twice), all devices.

    The update is one forward and two backward products for each matrix; frozen matrices have no
    gradient, so they take one backward product, and the adapters' own are too small to count.
    `remat: layers` runs their forward again, and the chunked head makes its logits again.
    """
    body = matrix_flops(work.model, work.tokens, 0) + attention_flops(work)
    head = matrix_flops(work.model, 0, work.completion_tokens)
    forward = body + head
    again = (body if work.model.remat == "layers" else 0.0) + head
    once = {phase: (forward, forward) for phase in work.runs}
    # A greedy completion is decoded only; finding the policy mask is one more forward pass.
    decoded = work.config.decoded_completions / work.config.rollout.num_generations
    once["rollout"] = (forward * decoded, forward * decoded)
    passes = 3 if work.model.lora is None else 2
    passes += work.config.crpo.policy_entropy_share < 1.0
    once["update"] = (passes * forward, passes * forward + again)
    return {p: (n * once[p][0], n * once[p][1]) for p, n in work.runs.items()}


def phase_memory_traffic(work: Workload) -> dict[str, float]:
    """Phase -> bytes that one device must at least move between its memory and its cores.

    Every token step of decoding reads the weights and the live part of the cache, half of the
    completions' on average. The passes over whole sequences read the weights once, and the update
    writes and reads the layers' inputs besides what the optimizer moves.
    """
    model, mesh, rollout = work.model, work.mesh, work.config.rollout
    count = parameter_count(model)
    weights = count * model.dtype.itemsize / mesh["tensor"]
    prompts, completions = cache_bytes(work.config, model, mesh)
    one_layer = work.tokens / work.row_shards * model.hidden_size * model.dtype.itemsize
    inputs = model.num_layers * one_layer
    trained = count if model.lora is None else adapter_count(model)
    # An update reads weight, gradient and moments, and writes weight and moments.
    moved = 12 + 2 * moment_bytes(work.config.optimizer)
    optimizer = moved * trained / (mesh["fsdp"] * mesh["tensor"])
    steps = rollout.max_completion_length
    once = {
        "rollout": weights + steps * (weights + prompts + completions / 2),
        "reference": weights + 2 * inputs,
        "update": 3 * weights + 3 * inputs + optimizer,
    }
    return {phase: times * once[phase] for phase, times in work.runs.items()}
