"""How long the prompts of many posts are, without encoding what they have in common each time.

A tokenizer takes the special tokens out of a text before it looks at what lies between them, and
encodes each piece by itself. So of a prompt

    <|im_start|>system ...<|im_end|><|im_start|>user QUESTION POST<|im_end|><|im_start|>...

only the turn with the post differs from post to post: its tokens are counted, and those before and
behind it, which are the same for all posts of a question, are added as one number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mental_r1_jax.text.prompts import prompt_parts
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptLengths:
    """Lengths in tokens, one of each post.

    Attributes:
        prompts: of the whole prompts, as `render_prompt` without a limit makes them.
        posts: what the posts add to their prompts.
    """

    prompts: Int[np.ndarray, " n"]
    posts: Int[np.ndarray, " n"]


def prompt_lengths(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    posts: Sequence[str],
    grammar: Grammar = GRAMMAR,
) -> PromptLengths:
    """Return the lengths of the prompts of `posts`, each with its question, none truncated.

    Raises:
        UserError: there is no usable chat template.
    """
    cores = [_core(tokenizer, question, grammar) for question in questions]
    turns = [
        core.before + prompt_parts(tokenizer, question, post, grammar)[1] + core.after
        for core, question, post in zip(cores, questions, posts, strict=True)
    ]
    common = np.array([core.common for core in cores], dtype=np.int64)
    frames = np.array([core.frame for core in cores], dtype=np.int64)
    prompts = tokenizer.count(turns) + common
    return PromptLengths(prompts=prompts, posts=prompts - frames)


def frame_length(tokenizer: Tokenizer, question: str, grammar: Grammar = GRAMMAR) -> int:
    """Return the tokens of a prompt without a post: instruction, question and prefill.

    Raises:
        UserError: there is no usable chat template.
    """
    return _core(tokenizer, question, grammar).frame


@dataclass(frozen=True)
class _Core:
    """The part of a question's prompts that is encoded with each post.

    Attributes:
        before: what of it precedes the post.
        after: what of it follows the post.
        common: tokens of the prompt outside this part.
        frame: tokens of the prompt without a post.
    """

    before: str
    after: str
    common: int
    frame: int


@functools.lru_cache(maxsize=256)
def _core(tokenizer: Tokenizer, question: str, grammar: Grammar) -> _Core:
    """Find the core between the special tokens nearest to the post, these included.

    Where the pieces do not encode to what the whole does, the core is all of the prompt.
    """
    before, _, after = prompt_parts(tokenizer, question, "", grammar)
    whole = tokenizer.encode(before + after)
    separators = _separators(tokenizer)
    start = max([before.rfind(token) for token in separators if token in before], default=0)
    ends = [after.find(token) + len(token) for token in separators if token in after]
    stop = min(ends, default=len(after))
    head, tail = tokenizer.encode(before[:start]), tokenizer.encode(after[stop:])
    core = tokenizer.encode(before[start:] + after[:stop])
    if head + core + tail != whole:
        return _Core(before, after, 0, len(whole))
    return _Core(before[start:], after[:stop], len(head) + len(tail), len(whole))


@functools.lru_cache(maxsize=16)
def _separators(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Special tokens that part a text wherever they stand in it, whatever surrounds them.

    They are looked for in the text as it is, take no blanks from beside them, and no added token
    can hold a part of them together with what precedes it.
    """
    added = tokenizer.hf.added_tokens_decoder
    contents = [token.content for token in added.values()]
    return tuple(
        token.content
        for i, token in added.items()
        if token.special
        and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and tokenizer.encode(token.content) == [i]
        and not any(_reaches_into(other, token.content) for other in contents)
    )


def _reaches_into(other: str, token: str) -> bool:
    """Whether an occurrence of `other` may begin before one of `token` and cover its beginning."""
    return any(
        token.startswith(other[k:]) or other[k:].startswith(token) for k in range(1, len(other))
    )
