"""Loss and gradients by the logits equal a PyTorch transcription of the formulas.

`python -m tests.parity.test_loss_torch` prints the differences of every combination of options.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from mental_r1_jax.config import STAGE_NAMES, CrpoConfig
from mental_r1_jax.models.head import token_stats
from mental_r1_jax.rl.advantages import advantages
from mental_r1_jax.rl.loss_terms import stage_coefficients, top_entropy_mask
from mental_r1_jax.rl.losses import crpo_loss, loss_denominators
from mental_r1_jax.types import Batch
from tests.parity import torch_reference as reference

torch = pytest.importorskip("torch", reason="compares with PyTorch")

TANH = stage_coefficients(CrpoConfig())
B, G, C, V, TEMPERATURE = 3, 4, 12, 17, 0.85
TOLERANCE = 1e-5

OPTIONS = {
    "paper (on policy)": reference.Options(TANH),
    "old policy, asymmetric clip": reference.Options(TANH, clip_epsilon_high=0.28),
    "old policy, dual clip, k2": reference.Options(TANH, dual_clip=1.5, kl_estimator="k2"),
    "sequence ratio and mean, batch std": reference.Options(
        TANH, importance_level="sequence", aggregation="sequence", scale_rewards="batch"
    ),
    "dr_grpo, no scale, leave one out": reference.Options(
        TANH,
        aggregation="dr_grpo",
        max_completion_length=C,
        scale_rewards="none",
        advantage_baseline="leave_one_out",
        kl_estimator="k1",
    ),
    "present only, explicit, entropy bonus, no KL": reference.Options(
        (0.5, -0.4, 0.3, -0.2, 0.1),
        stage_entropy_mean="present_only",
        entropy_bonus_coef=0.07,
        kl_coef=0.0,
    ),
    "GRPO (stages off)": reference.Options((0.0,) * 5),
    "REINFORCE++ (on policy)": reference.Options(
        (0.0,) * 5, scale_rewards="tokens", advantage_baseline="none", kl_in="reward", kl_coef=0.1
    ),
    "RLOO, KL in the reward, old policy": reference.Options(
        (0.0,) * 5, scale_rewards="none", advantage_baseline="leave_one_out", kl_in="reward"
    ),
    "CISPO, TIS, corrected k3": reference.Options(
        TANH,
        policy_loss="cispo",
        clip_epsilon_low=0.3,
        sampler_correction="tis",
        kl_estimator="k3_corrected",
        kl_coef=0.1,
    ),
    "top entropies, IcePop (on policy)": reference.Options(
        TANH, policy_entropy_share=0.2, sampler_correction="icepop"
    ),
}


def make_inputs(seed: int, options: reference.Options, *, on_policy: bool) -> reference.Inputs:
    """Draw a step with ragged lengths, an empty completion and missing stages."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, C + 1, (B, G))
    lengths[1, 2] = 0

    def spans(length: int) -> list[tuple[int, int] | None]:
        cuts = np.sort(rng.integers(0, length + 1, 2 * len(STAGE_NAMES)))
        pairs = [(int(a), int(b)) for a, b in cuts.reshape(-1, 2)]
        return [pair if pair[0] < pair[1] else None for pair in pairs]

    def near(logits: torch.Tensor, spread: float) -> torch.Tensor:
        return logits.detach() + torch.from_numpy(spread * rng.standard_normal(logits.shape))

    # float32 numbers held in float64, so that both sides start from the same bits.
    start = rng.standard_normal((B, G, C, V)).astype(np.float32).astype(np.float64)
    logits = torch.tensor(2.0 * start, requires_grad=True)
    old_logits = None if on_policy else near(logits, 0.4).float().double()
    ref_logits = None if options.kl_coef == 0 else near(logits, 0.3).float().double()
    ids = torch.from_numpy(rng.integers(0, V, (B, G, C)))
    logprobs = reference.log_softmax(logits.detach(), TEMPERATURE).gather(-1, ids[..., None])
    return reference.Inputs(
        logits=logits,
        old_logits=old_logits,
        ref_logits=ref_logits,
        ids=ids,
        lengths=torch.from_numpy(lengths),
        spans=[[spans(int(length)) for length in row] for row in lengths],
        rewards=torch.from_numpy(rng.integers(-3, 4, (B, G)) / 2.0),
        # Far enough from the policy that both corrections reach both of their ends.
        sampler_logprobs=near(logprobs[..., 0], 1.2).float().double(),
        temperature=TEMPERATURE,
    )


def to_jax(x: torch.Tensor) -> Array:
    return jnp.asarray(x.detach().numpy().astype(np.float32))


def make_batch(inputs: reference.Inputs) -> Batch:
    """The same step as the package's containers; log-probs come from the package too."""
    ids = jnp.asarray(inputs.ids.numpy().astype(np.int32))
    stage_mask = np.zeros((B, G, len(STAGE_NAMES), C), bool)
    for b, g, stage in np.ndindex(B, G, len(STAGE_NAMES)):
        span = inputs.spans[b][g][stage]
        if span is not None:
            stage_mask[b, g, stage, slice(*span)] = True

    def logprobs(logits: torch.Tensor | None) -> Array | None:
        return None if logits is None else stats(to_jax(logits), ids)[0]

    return Batch(
        prompt_ids=jnp.ones((B, 1), jnp.int32),
        prompt_mask=jnp.ones((B, 1), bool),
        completion_ids=ids,
        completion_mask=jnp.asarray(np.arange(C) < inputs.lengths.numpy()[..., None]),
        stage_mask=jnp.asarray(stage_mask),
        rewards=to_jax(inputs.rewards),
        sampler_logprobs=to_jax(inputs.sampler_logprobs),
        decode_logprobs=logprobs(inputs.logits),
        old_logprobs=logprobs(inputs.old_logits),
        ref_logprobs=logprobs(inputs.ref_logits),
    )


def stats(logits: Array, ids: Array) -> tuple[Array, Array]:
    """The package's log-probs and entropies; with an identity head the hidden states are logits."""
    return token_stats(logits, ids, jnp.eye(V), temperature=TEMPERATURE, chunk_size=5)


def loss_and_gradient(inputs: reference.Inputs, options: reference.Options) -> tuple[Array, Array]:
    """The package's loss and its gradient by the logits."""
    batch = make_batch(inputs)
    choices = dataclasses.asdict(options)
    limit = choices.pop("max_completion_length") or C
    crpo = CrpoConfig(stage_entropy_rule="explicit", **choices)
    if crpo.policy_entropy_share < 1:
        entropies = stats(to_jax(inputs.logits), batch.completion_ids)[1]
        kept = top_entropy_mask(entropies, batch.completion_mask, crpo.policy_entropy_share)
        batch = batch.replace(policy_mask=kept)

    def loss(logits: Array) -> Array:
        logprobs, entropies = stats(logits, batch.completion_ids)
        weights = (advantages(batch, crpo), loss_denominators(batch, crpo, limit))
        return crpo_loss(logprobs, entropies, batch, *weights, crpo, limit)[0]

    return jax.jit(jax.value_and_grad(loss))(to_jax(inputs.logits))


def differences(name: str, seed: int = 3) -> dict[str, float]:
    """Compare both sides: the loss, and the largest differences of loss and gradient."""
    options = OPTIONS[name]
    inputs = make_inputs(seed, options, on_policy="on policy" in name)
    expected = reference.crpo_loss(inputs, options)
    expected.backward()
    loss, gradient = loss_and_gradient(inputs, options)
    expected_gradient = inputs.logits.grad.numpy()
    return {
        "loss": expected.item(),
        "largest_gradient": float(np.abs(expected_gradient).max()),
        "loss_difference": abs(float(loss) - expected.item()),
        "gradient_difference": float(np.abs(np.asarray(gradient) - expected_gradient).max()),
    }


def print_differences() -> None:
    """Print one Markdown row a combination of options."""
    print("| options | loss | largest gradient | loss difference | gradient difference |")
    print("|---|---|---|---|---|")
    for name in OPTIONS:
        row = differences(name)
        print(
            f"| {name} | {row['loss']:+.5f} | {row['largest_gradient']:.4f} "
            f"| {row['loss_difference']:.1e} | {row['gradient_difference']:.1e} |"
        )


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_equal_pytorch(name: str) -> None:
    row = differences(name)
    assert row["loss_difference"] < TOLERANCE
    assert row["gradient_difference"] < TOLERANCE
    assert row["largest_gradient"] > 100 * TOLERANCE  # the comparison has something to compare


if __name__ == "__main__":
    print_differences()
