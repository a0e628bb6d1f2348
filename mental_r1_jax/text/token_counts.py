"""Lengths of posts in tokens, counted beside other work.

Opening a tokenizer takes seconds, most of it the import of transformers, and counting the tokens
of real sets takes more than all the rest of `mental-r1 data`. So for sets that are large both are
done by a process of its own, which opens the tokenizer while this one checks the files, and counts
while this one writes records. For small sets, whose posts are counted before such a process has
begun, it is all done here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.stages import GRAMMAR, Grammar

if TYPE_CHECKING:
    from mental_r1_jax.text.tokenizer import Tokenizer

PERCENTILES = (50, 90, 99, 100)
_TOKENIZER_FILES = ("*token*", "*.jinja", "vocab*", "merges*", "config.json", "generation_config*")


@dataclass(frozen=True)
class TokenLengths:
    """Posts of one split in tokens.

    Attributes:
        percentiles: what posts add to their prompts, at 50, 90, 99 and 100 percent of the posts.
        truncated: posts that do not fit into `rollout.max_prompt_length` with their instruction.
    """

    percentiles: tuple[int, ...]
    truncated: int


@dataclass(frozen=True)
class Asked:
    """What is to be counted.

    Attributes:
        posts: (set, split) -> question and text of each post.
        limit: `rollout.max_prompt_length`, in tokens.
        grammar: instruction and prefill of the prompts.
    """

    posts: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
    limit: int
    grammar: Grammar = GRAMMAR


# The first answer to what is asked is why there is no tokenizer, or None: then every question
# leaves room for a post. The second is (set, split) -> lengths, of none without a tokenizer.
Answers = Iterator[Any]
Count = Callable[[Asked], Answers]


def token_lengths(
    tokenizer: Tokenizer,
    posts: Sequence[tuple[str, str]],
    max_prompt_length: int,
    grammar: Grammar = GRAMMAR,
) -> TokenLengths:
    """Measure posts, each given as its question and its text.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    from mental_r1_jax.text.prompt_lengths import prompt_lengths

    questions, texts = [question for question, _ in posts], [text for _, text in posts]
    lengths = prompt_lengths(tokenizer, questions, texts, grammar)
    truncated = int((lengths.prompts > max_prompt_length).sum())
    # "higher" gives a length that some post has.
    percentiles = np.percentile(lengths.posts if posts else [0], PERCENTILES, method="higher")
    return TokenLengths(tuple(int(length) for length in percentiles), truncated)


@contextlib.contextmanager
def token_counter(model: str, apart: bool) -> Iterator[Count]:
    """Give a function that counts tokens with the tokenizer of `model`; see `Answers`.

    Its answers raise `UserError` where the tokenizer has no usable chat template, a question
    leaves no room for a post, or the process has been ended by somebody else.

    Args:
        model: a model folder, run folder or hub id.
        apart: let a process of its own open the tokenizer from now on, and count.
    """
    if not apart:
        yield lambda asked: _answers(find_tokenizer(model), asked)
        return
    # Not forked: this process may have threads, and locks that they hold.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, model), daemon=True)
    process.start()
    there.close()  # now the pipe ends with the process
    try:
        yield lambda asked: _relayed(here, asked)
    finally:
        here.close()
        process.kill()
        process.join()


def find_tokenizer(model: str) -> Tokenizer | str:
    """Return the tokenizer of a model folder, run folder or hub id, or why there is none."""
    import huggingface_hub

    from mental_r1_jax.text.tokenizer import load_tokenizer

    folder = Path(model)
    if (folder / "base_model").is_dir():
        folder = folder / "base_model"
    try:
        if not folder.is_dir():
            files = huggingface_hub.snapshot_download(model, allow_patterns=[*_TOKENIZER_FILES])
            folder = Path(files)
        return load_tokenizer(folder)
    except (UserError, OSError, ValueError) as error:
        return str(error).splitlines()[0]


def _answers(tokenizer: Tokenizer | str, asked: Asked) -> Answers:
    """The two answers; see `Answers`."""
    if isinstance(tokenizer, str):
        yield tokenizer
        yield {}
        return
    _check_room(tokenizer, asked)
    yield None
    yield {
        split: token_lengths(tokenizer, posts, asked.limit, asked.grammar)
        for split, posts in asked.posts.items()
    }


def _check_room(tokenizer: Tokenizer, asked: Asked) -> None:
    """Raise if a prompt of any set is too long before a post is in it."""
    from mental_r1_jax.text.prompt_lengths import frame_length
    from mental_r1_jax.text.truncation import check_room

    for (name, _), posts in asked.posts.items():
        for question in dict.fromkeys(question for question, _ in posts):
            length = frame_length(tokenizer, question, asked.grammar)
            check_room(length, asked.limit, f"a post of the set {name!r}")


def _relayed(pipe: Connection, asked: Asked) -> Answers:
    """The answers of the process at the other end; what it raises is raised here."""
    try:
        pipe.send(asked)
        for _ in range(2):
            answer = pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            yield answer
    except (EOFError, ConnectionError) as error:
        raise UserError(
            "The process that counts tokens has ended",
            "that it counts all of them",
            "no answer from it",
            "The system may have ended it for want of memory; give the command again.",
        ) from error


def _serve(pipe: Connection, model: str) -> None:
    """What the process does: open the tokenizer, wait for posts, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this one
    # transformers imports PyTorch wherever it is installed, which takes longer than all the rest
    # here, and no tokenizer needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # The command line turns it off, for there it warns of every fork; nothing is forked here.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with contextlib.suppress(EOFError, ConnectionError):  # the command has ended
        try:
            tokenizer = find_tokenizer(model)
            for answer in _answers(tokenizer, pipe.recv()):
                pipe.send(answer)
        except Exception as error:
            pipe.send(error)
