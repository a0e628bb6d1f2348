"""The arithmetic of a step, from shapes alone: operations, and bytes read from memory.

Counting follows the usual convention: a matrix product of a token with a matrix of n numbers is 2n
operations, attention counts the keys that a token may see, and nothing else counts. The compiler's
own count is of no use here: it counts the body of a loop once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mental_r1_jax.models.architecture import DecoderConfig, parameter_count

# Bytes that AdamW moves for a parameter: reads weight, gradient and two moments, writes three.
_OPTIMIZER_BYTES = 28


@dataclass(frozen=True)
class Workload:
    """Sizes of one step, over all devices.

    Attributes:
        model: architecture.
        prompts: B.
        group: G.
        prompt_length: P; every prompt is taken to be so long.
        completion_length: C; every completion is taken to run to its limit.
        num_iterations: updates of one rollout.
        has_reference: whether a reference policy scores the completions.
        data: copies of the model.
        fsdp: ways in which weights and rows are cut.
        tensor: ways in which matrices are cut.
    """

    model: DecoderConfig
    prompts: int
    group: int
    prompt_length: int
    completion_length: int
    num_iterations: int
    has_reference: bool
    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def completion_tokens(self) -> int:
        """Tokens sampled in a step."""
        return self.prompts * self.group * self.completion_length

    @property
    def tokens(self) -> int:
        """Tokens that a pass over prompts and completions computes; a prompt counts once."""
        return self.prompts * self.prompt_length + self.completion_tokens


def layer_matrix_size(model: DecoderConfig) -> int:
    """Numbers in the matrices of all layers."""
    heads = 2 * model.num_heads + 2 * model.num_kv_heads
    one = model.hidden_size * (heads * model.head_dim + 3 * model.intermediate_size)
    return model.num_layers * one


def head_size(model: DecoderConfig) -> int:
    """Numbers in the output projection."""
    return model.hidden_size * model.vocab_size


def attention_flops(work: Workload) -> tuple[float, float]:
    """Operations of attention in one forward pass: (of prompts, of completions)."""
    model = work.model
    one_key = 4.0 * model.num_layers * model.num_heads * model.head_dim
    p, c = work.prompt_length, work.completion_length
    prompts = work.prompts * p * (p + 1) / 2
    completions = work.prompts * work.group * c * (p + (c + 1) / 2)
    return one_key * prompts, one_key * completions


def phase_flops(work: Workload) -> dict[str, tuple[float, float]]:
    """Phase -> (operations that the method needs, operations with those done twice), all devices.

    The update is one forward and two backward products for each matrix; `remat: layers` runs their
    forward again, and the chunked head makes its logits again.
    """
    layers, head = 2.0 * layer_matrix_size(work.model), 2.0 * head_size(work.model)
    of_prompts, of_completions = attention_flops(work)
    body = layers * work.tokens + of_prompts + of_completions
    forward = body + head * work.completion_tokens
    again = (body if work.model.remat == "layers" else 0.0) + head * work.completion_tokens
    phases = {
        "rollout": (forward, forward),
        "update": (
            3 * forward * work.num_iterations,
            (3 * forward + again) * work.num_iterations,
        ),
    }
    passes = work.has_reference + (work.num_iterations > 1)
    if passes:
        phases["reference"] = (passes * forward, passes * forward)
    return phases


def cache_bytes(work: Workload) -> tuple[float, float]:
    """Keys and values on one device: (of prompts, of completions of full length)."""
    model = work.model
    cuts = work.tensor if model.num_kv_heads % work.tensor == 0 else 1
    one_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype.itemsize
    rows = work.prompts / (work.data * work.fsdp)
    prompts = rows * work.prompt_length * one_token / cuts
    return prompts, rows * work.group * work.completion_length * one_token / cuts


def phase_memory_traffic(work: Workload) -> dict[str, float]:
    """Phase -> bytes that one device must at least move between its memory and its cores.

    Every token step of decoding reads the weights and the live part of the cache, half of the
    completions' on average. The passes over whole sequences read the weights once, and the update
    writes and reads the layers' inputs besides what the optimizer moves.
    """
    model = work.model
    count = parameter_count(model)
    weights = count * model.dtype.itemsize / work.tensor
    prompts, completions = cache_bytes(work)
    shards = work.fsdp * work.tensor
    inputs = work.tokens / (work.data * work.fsdp) * model.hidden_size * model.dtype.itemsize
    update = 3 * weights + 3 * model.num_layers * inputs + _OPTIMIZER_BYTES * count / shards
    phases = {
        "rollout": weights + work.completion_length * (weights + prompts + completions / 2),
        "update": update * work.num_iterations,
    }
    passes = work.has_reference + (work.num_iterations > 1)
    if passes:
        phases["reference"] = passes * (weights + 2 * model.num_layers * inputs)
    return phases
