"""Wrong labels on purpose: how a method bears with the noise that labelled posts have anyway."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import overload

from mental_r1_jax.data.records import Example


class NoisyLabels(Sequence[Example]):
    """Posts of one set of which a share has a label drawn at random.

    The label is drawn from all labels of the set, so it may be the true one: of L labels a share of
    `noise` (L - 1) / L of the posts is wrong. A post's label depends on (seed, set, row) alone.
    """

    def __init__(
        self, posts: Sequence[Example], labels: Sequence[str], noise: float, seed: int
    ) -> None:
        """Nothing is drawn before a post is asked for.

        Args:
            posts: the posts with their true labels.
            labels: every label of the set.
            noise: share of posts whose label is drawn, from 0 to 1.
            seed: of the draws.
        """
        self._posts, self._labels, self._noise, self._seed = posts, labels, noise, seed

    def __len__(self) -> int:
        return len(self._posts)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        post = self._posts[place]
        draw = random.Random(f"label noise/{self._seed}/{post.set_name}/{post.row}")
        if draw.random() >= self._noise:
            return post
        label = draw.choice(self._labels)
        # Reasoning leads to the label that it came with.
        reasoning = post.reasoning if label == post.label else None
        return dataclasses.replace(post, label=label, reasoning=reasoning)
