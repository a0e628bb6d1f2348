"""Wrong labels on purpose: how a method bears with the noise that labelled posts have anyway."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from mental_r1_jax.data.changed_posts import ChangedPosts
from mental_r1_jax.data.records import Example


def noisy_labels(
    posts: Sequence[Example], labels: Sequence[str], noise: float, seed: int
) -> Sequence[Example]:
    """Posts of one set of which a share has a label drawn at random.

    The label is drawn from all labels of the set, so it may be the true one: of L labels a share of
    `noise` (L - 1) / L of the posts is wrong. A post's label depends on (seed, set, row) alone.

    Args:
        posts: the posts with their true labels.
        labels: every label of the set.
        noise: share of posts whose label is drawn, from 0 to 1.
        seed: of the draws.
    """

    def change(post: Example) -> Example:
        draw = random.Random(f"label noise/{seed}/{post.set_name}/{post.row}")
        if draw.random() >= noise:
            return post
        label = draw.choice(labels)
        # Reasoning leads to the label that it came with.
        reasoning = post.reasoning if label == post.label else None
        return dataclasses.replace(post, label=label, reasoning=reasoning)

    return ChangedPosts(posts, change)
