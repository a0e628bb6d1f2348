"""Posts that are changed when they are asked for; nothing is read before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from mental_r1_jax.data.records import Example


class ChangedPosts(Sequence[Example]):
    """Posts of one set, each as `change` makes it."""

    def __init__(self, posts: Sequence[Example], change: Callable[[Example], Example]) -> None:
        """Remember both."""
        self._posts, self._change = posts, change

    def __len__(self) -> int:
        return len(self._posts)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._change(self._posts[place])
