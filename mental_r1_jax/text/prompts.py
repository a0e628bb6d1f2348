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
from itertools import pairwise

from jinja2 import TemplateError

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.template_trial import check_template_ends
from mental_r1_jax.text.tokenizer import Tokenizer, printable
from mental_r1_jax.text.truncation import longest_beginning
from mental_r1_jax.text_section import fill

# Stands for the post while the template is rendered; private-use characters, so that no template
# or question holds it.
_POST_MARK = "\ue000post\ue001"
_SYSTEM_PROBE = [
    {"role": "system", "content": "\ue000system\ue001"},
    {"role": "user", "content": "post"},
]


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


def system_instruction(grammar: Grammar = GRAMMAR) -> str:
    """Return the system turn: the task and the form of the completion."""
    stages = str(len(grammar.stages))
    return fill(grammar.instruction, stages=stages, form=grammar.skeleton())


def render_prompt(
    tokenizer: Tokenizer,
    question: str,
    post: str,
    max_prompt_length: int,
    grammar: Grammar = GRAMMAR,
) -> RenderedPrompt:
    """Render and encode the prompt of one post, truncating the post where it is too long.

    The kept part of a post is the longest that fits, measured in tokens of the full prompt; see
    `truncation.longest_beginning`. Blank space around the post is dropped, and broken UTF-8 in it
    becomes U+FFFD.

    Args:
        tokenizer: the model's tokenizer, with a chat template.
        question: the question of the data set, directly followed by the post.
        post: the text to assess.
        max_prompt_length: the limit in tokens, prefill included.
        grammar: instruction and prefill.

    Raises:
        UserError: there is no usable chat template, or the prompt without the post is too long.
    """
    before, post, after = prompt_parts(tokenizer, question, post, grammar)
    ids = tokenizer.encode(before + post + after)
    if len(ids) <= max_prompt_length:
        return RenderedPrompt(tuple(ids), before + post + after, truncated=False)
    kept, ids = longest_beginning(tokenizer, before, post, after, max_prompt_length)
    return RenderedPrompt(tuple(ids), before + kept + after, truncated=True)


def prompt_parts(
    tokenizer: Tokenizer, question: str, post: str, grammar: Grammar = GRAMMAR
) -> tuple[str, str, str]:
    """Return the prompt before the post, the whole post as it stands there, and what follows it.

    Raises:
        UserError: there is no usable chat template.
    """
    before, after = _frame(tokenizer, question, grammar)
    return before, _without_special_tokens(printable(post).strip(), tokenizer), after


def check_grammar(tokenizer: Tokenizer, grammar: Grammar = GRAMMAR) -> None:
    """Check that the tokenizer can write the grammar: tags survive encoding and decoding.

    Raises:
        UserError: they do not, for instance because a tag is a special token, which has no text.
    """
    completion = grammar.render([stage.description for stage in grammar.stages], "Yes")
    decoded = tokenizer.decode(tokenizer.encode(completion)).text
    parsed = grammar.parse(decoded)
    if not parsed.well_formed:
        raise UserError(
            what="The tokenizer cannot write the tags of the grammar",
            expected="a well-formed completion to stay so through encoding and decoding",
            got=f"a text in which {parsed.reason}",
            remedy='Mark these tokens as "special": false in tokenizer.json.',
        )


@functools.lru_cache(maxsize=256)
def _frame(tokenizer: Tokenizer, question: str, grammar: Grammar) -> tuple[str, str]:
    """The rendered prompt before and after the post, prefill included."""
    if not tokenizer.hf.chat_template:
        raise UserError(
            what="The tokenizer has no chat template",
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            got="neither",
            remedy="Use an instruction-tuned model, or add the template of its family.",
        )
    rendered = _apply_template(tokenizer, system_instruction(grammar), question + _POST_MARK)
    before, mark, after = rendered.partition(_POST_MARK)
    if not mark or _POST_MARK in after or question.strip() not in before:
        raise UserError(
            what="The chat template changes the user's text",
            expected="the question and the post in the prompt, once and unchanged",
            got=f"{rendered.count(_POST_MARK)} copies of the post",
            remedy="Use the template of an ordinary chat model.",
        )
    # Templates of reasoning models may open the thinking themselves; the prefill opens it here.
    opening = f"<{grammar.think_tag}>"
    if after.rstrip().endswith(opening):
        after = after.rstrip().removesuffix(opening)
    return before, after + grammar.prefill


def _apply_template(tokenizer: Tokenizer, system: str, user: str) -> str:
    """The chat up to the start of the assistant turn; without system role, it opens the user's."""
    with_system = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    alone = [{"role": "user", "content": f"{system}\n\n{user}"}]
    _check_template(tokenizer)
    try:
        return _render(tokenizer, with_system if _takes_system_role(tokenizer) else alone)
    # A template is a stranger's program: it may end in any kind of error.
    except Exception as error:
        raise UserError(
            what="The chat template cannot render a user turn",
            expected="a template for a user turn, after a system turn or alone",
            got=f"{type(error).__name__}: {error}",
            remedy="Use an instruction-tuned model, or mend its chat template.",
        ) from error


@functools.lru_cache(maxsize=16)
def _check_template(tokenizer: Tokenizer) -> None:
    """Refuse a template that is no text or does not end; once a tokenizer, for trying takes time.

    Of several by name the default counts, as in transformers.
    """
    template = tokenizer.hf.chat_template
    text = template.get("default") if isinstance(template, dict) else template
    if not isinstance(text, str):
        raise UserError(
            what="The chat template is no text",
            expected="a Jinja template, or several by name with one called default",
            got=f"{template!r:.80}",
            remedy="Use the template that the model's authors published.",
        )
    system, user = system_instruction(), f"Question\nStatement: {_POST_MARK}"
    with_system = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    alone = [{"role": "user", "content": f"{system}\n\n{user}"}]
    chats = (_SYSTEM_PROBE, with_system, alone)
    check_template_ends(text, chats, tokenizer.hf.special_tokens_map)


@functools.lru_cache(maxsize=16)
def _takes_system_role(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system turn: some raise (Gemma), some drop it silently."""
    try:
        return _SYSTEM_PROBE[0]["content"] in _render(tokenizer, _SYSTEM_PROBE)
    except TemplateError:
        return False


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """The text of a chat; encoded later, in one piece with the prefill."""
    text = tokenizer.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def _without_special_tokens(post: str, tokenizer: Tokenizer) -> str:
    """`post` with a space after the first character of every special token written in it.

    One pass breaks them all, nested and overlapping ones too: every place where one begins is
    split, and what is put there belongs to none, so that no new one can arise from it.
    """
    pattern, separator = _special_tokens(tokenizer)
    if pattern is None:
        return post
    cuts = [0, *(found.start() + 1 for found in pattern.finditer(post)), len(post)]
    return separator.join(post[start:stop] for start, stop in pairwise(cuts))


@functools.lru_cache(maxsize=16)
def _special_tokens(tokenizer: Tokenizer) -> tuple[re.Pattern[str] | None, str]:
    """Finds every place where a special token begins; and what to break one up with.

    That is a space, or a no-break space where special tokens hold spaces. A token is at least two
    characters long here: a single character cannot be broken up.
    """
    added = tokenizer.hf.added_tokens_decoder.values()
    tokens = sorted({t.content for t in added if t.special and len(t.content) > 1})
    if not tokens:
        return None, " "
    used = set().union(*tokens)
    separator = next(c for c in (" ", "\u00a0", *map(chr, range(0x2000, 0x200B))) if c not in used)
    return re.compile(f"(?={'|'.join(map(re.escape, tokens))})"), separator
