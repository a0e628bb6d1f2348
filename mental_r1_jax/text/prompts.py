"""The prompt of one post: chat template, prefilled assistant turn, truncation of the post only.

1. The model's own chat template renders the instruction (system) and the question and post (user).
2. The assistant turn is prefilled, so that a completion begins inside the first stage.
3. If that is too long, the *post* is truncated at its end; instruction and question never are.

A post is material, never control: a special token written in it ("<|im_end|>") is broken up by a
space after its first character ("< |im_end|>"), so it is encoded as plain text and stays readable.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from jinja2 import TemplateError

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR, THINK_TAG
from mental_r1_jax.text.tokenizer import Tokenizer, printable

# Stands for the post while the template is rendered; private-use characters, so that no template
# or question holds it.
_POST_MARK = "\ue000post\ue001"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, ready for the model.

    Attributes:
        ids: token ids, special tokens exactly as the chat template wrote them.
        text: the text that `ids` encode; ends with the grammar's prefill.
        truncated: whether the post lost its end.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool


def system_instruction() -> str:
    """Return the system turn: the task and the form of the completion."""
    return (
        "You assess mental health from what people write. Think through the post in "
        f"{len(GRAMMAR.stages)} stages, then answer with one of the labels given in the question. "
        "Write each stage briefly, in this order, and use exactly this form:\n"
        f"{GRAMMAR.skeleton()}"
    )


def render_prompt(
    tokenizer: Tokenizer, question: str, post: str, max_prompt_length: int
) -> RenderedPrompt:
    """Render and encode the prompt of one post, truncating the post where it is too long.

    The kept part of a post is the longest that fits, measured in tokens of the full prompt. Blank
    space around the post is dropped, and broken UTF-8 in it becomes U+FFFD.

    Args:
        tokenizer: the model's tokenizer, with a chat template.
        question: the question of the data set, directly followed by the post.
        post: the text to assess.
        max_prompt_length: the limit in tokens, prefill included.

    Raises:
        UserError: there is no usable chat template, or the prompt without the post is too long.
    """
    before, after = _frame(tokenizer, question)
    post = _without_special_tokens(printable(post).strip(), tokenizer)
    ids = tokenizer.encode(before + post + after)
    if len(ids) <= max_prompt_length:
        return RenderedPrompt(tuple(ids), before + post + after, truncated=False)
    return _truncate(tokenizer, before, post, after, max_prompt_length)


def check_grammar(tokenizer: Tokenizer) -> None:
    """Check that the tokenizer can write the grammar: tags survive encoding and decoding.

    Raises:
        UserError: they do not, for instance because a tag is a special token, which has no text.
    """
    completion = GRAMMAR.render([stage.description for stage in GRAMMAR.stages], "Yes")
    decoded = tokenizer.decode(tokenizer.encode(completion)).text
    parsed = GRAMMAR.parse(decoded)
    if not parsed.well_formed:
        raise UserError(
            what="The tokenizer cannot write the tags of the grammar",
            expected="a well-formed completion to stay so through encoding and decoding",
            got=f"a text in which {parsed.reason}",
            remedy='Mark these tokens as "special": false in tokenizer.json.',
        )


@functools.lru_cache(maxsize=256)
def _frame(tokenizer: Tokenizer, question: str) -> tuple[str, str]:
    """The rendered prompt before and after the post, prefill included."""
    if not tokenizer.hf.chat_template:
        raise UserError(
            what="The tokenizer has no chat template",
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            got="neither",
            remedy="Use an instruction-tuned model, or add the template of its family.",
        )
    rendered = _apply_template(tokenizer, system_instruction(), question + _POST_MARK)
    before, mark, after = rendered.partition(_POST_MARK)
    if not mark or _POST_MARK in after or question.strip() not in before:
        raise UserError(
            what="The chat template changes the user's text",
            expected="the question and the post in the prompt, once and unchanged",
            got=f"{rendered.count(_POST_MARK)} copies of the post",
            remedy="Use the template of an ordinary chat model.",
        )
    # Templates of reasoning models may open the thinking themselves; the prefill opens it here.
    opening = f"<{THINK_TAG}>"
    if after.rstrip().endswith(opening):
        after = after.rstrip().removesuffix(opening)
    return before, after + GRAMMAR.prefill


def _apply_template(tokenizer: Tokenizer, system: str, user: str) -> str:
    """The chat up to the start of the assistant turn; without system role, it opens the user's."""
    if _takes_system_role(tokenizer):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    else:
        messages = [{"role": "user", "content": f"{system}\n\n{user}"}]
    try:
        return _render(tokenizer, messages)
    except TemplateError as error:
        raise UserError(
            what="The chat template cannot render a user turn",
            expected="a template for a user turn, after a system turn or alone",
            got=f"{type(error).__name__}: {error}",
            remedy="Use an instruction-tuned model, or mend its chat template.",
        ) from error


@functools.lru_cache(maxsize=16)
def _takes_system_role(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system turn: some raise (Gemma), some drop it silently."""
    probe = "\ue000system\ue001"
    turns = [{"role": "system", "content": probe}, {"role": "user", "content": "post"}]
    try:
        return probe in _render(tokenizer, turns)
    except TemplateError:
        return False


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """The text of a chat; encoded later, in one piece with the prefill."""
    text = tokenizer.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def _without_special_tokens(post: str, tokenizer: Tokenizer) -> str:
    """`post` with a space after the first character of every special token written in it."""
    pattern = _special_token_pattern(tokenizer)
    if pattern is None:
        return post
    while pattern.search(post):
        post = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", post)
    return post


@functools.lru_cache(maxsize=16)
def _special_token_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Matches any special token of the tokenizer; the longest first.

    A token is at least two characters long here: a single character cannot be broken up.
    """
    added = tokenizer.hf.added_tokens_decoder.values()
    tokens = {t.content for t in added if t.special and len(t.content) > 1}
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if tokens else None


def _truncate(
    tokenizer: Tokenizer, before: str, post: str, after: str, limit: int
) -> RenderedPrompt:
    """The prompt with the longest beginning of `post` that fits into `limit` tokens.

    A beginning may end where a token of the whole prompt starts. Ending there changes the tokens
    next to it only, so the number of tokens is known but for a constant that every trial corrects:
    about five encodings decide, whatever the length.
    """
    lengths, tokens_before = _beginnings(tokenizer, before, post, after)

    def at(place: int) -> tuple[str, list[int]]:
        text = before + post[: lengths[place]] + after
        return text, tokenizer.encode(text)

    fits, best = 0, at(0)
    if len(best[1]) >= limit:
        raise UserError(
            what="max_prompt_length leaves no room for the post",
            expected=f"more than the {len(best[1])} tokens of instruction, question and prefill",
            got=str(limit),
            remedy="Raise rollout.max_prompt_length.",
        )
    too_long, constant = len(lengths) - 1, len(best[1]) - tokens_before[0]
    while too_long - fits > 1:
        guess = int(np.searchsorted(tokens_before, limit - constant, side="right")) - 1
        place = min(max(guess, fits + 1), too_long - 1)
        trial = at(place)
        constant = len(trial[1]) - tokens_before[place]
        if len(trial[1]) <= limit:
            fits, best = place, trial
        else:
            too_long = place
    return RenderedPrompt(tuple(best[1]), best[0], truncated=True)


def _beginnings(
    tokenizer: Tokenizer, before: str, post: str, after: str
) -> tuple[list[int], Int[np.ndarray, " places"]]:
    """Lengths to which `post` may be truncated, ascending, from nothing to all of it.

    Also returns, for each, how many tokens of the whole prompt start before that place. A token
    that starts inside a character has the offset of the character, which is kept or lost whole.
    """
    encoded = tokenizer.hf(
        before + post + after, add_special_tokens=False, return_offsets_mapping=True
    )
    starts = np.array([start for start, _ in encoded["offset_mapping"]]) - len(before)
    lengths = {0, len(post)}
    for start in starts[(starts > 0) & (starts < len(post))].tolist():
        while start > 0 and post[start - 1].isspace():
            start -= 1
        lengths.add(start)
    ascending = sorted(lengths)
    return ascending, np.searchsorted(np.sort(starts), ascending, side="left")
