"""Rewards of one completion: text or its number of tokens in, numbers out; no ids, no arrays.

The reward is `sum over functions of weight * value`. The recipe has two, of equal weight: the
format reward (+0.5 or -0.5) and the answer reward (+w or -w, with the balanced weight w of the
data set and label). A user's own function is one more entry.

Source: the CRPO paper (arXiv 2606.13176) and its reference implementation.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import reprlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mental_r1_jax.errors import UserError
from mental_r1_jax.text.answers import AnswerReader
from mental_r1_jax.text.stages import ParsedCompletion
from mental_r1_jax.text.tokenizer import printable

# Larger values of a user's reward are mistakes: float32 sums would lose every other reward.
LARGEST_REWARD = 1e6


@runtime_checkable
class LabelledExample(Protocol):
    """What a reward may know about the post: its data set and its gold label."""

    @property
    def set_name(self) -> str:
        """Name of the data set."""

    @property
    def label(self) -> str:
        """The gold label."""


class RewardError(UserError):
    """A reward function that cannot be loaded, raised, or returned something unusable."""


@dataclass(frozen=True)
class RewardFunction:
    """One reward with its weight in the sum.

    Attributes:
        name: the name in the metrics.
        weight: factor of its value in the total reward.
        function: (completion, its parse, the example) -> value.
    """

    name: str
    weight: float
    function: Callable[[str, ParsedCompletion, LabelledExample], float]


@dataclass(frozen=True)
class LengthReward:
    """A reward of a completion's length alone, with its weight in the sum.

    Attributes:
        name: the name in the metrics.
        weight: factor of its value in the total reward.
        of_tokens: number of sampled tokens, end-of-sequence included -> value.
    """

    name: str
    weight: float
    of_tokens: Callable[[int], float]


Reward = RewardFunction | LengthReward


def balanced_weights(counts: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], float]:
    """Return the weight of every (data set d, label c): rare sets and rare labels weigh more.

    `w(d, c) = sqrt(w_c * w_d)`, `w_d = (1/n_d) / mean_d'(1/n_d')`,
    `w_c = (1/n_dc) / mean_c'(1/n_dc')`; n_d rows of the train split, n_dc of them with label c.
    Labels without a row have no weight and do not count in the means.

    Args:
        counts: rows of the train split by data set and label.

    Raises:
        ValueError: a count is negative, or a data set has no row.
    """
    present = {
        name: {label: n for label, n in labels.items() if n != 0} for name, labels in counts.items()
    }
    for name, labels in present.items():
        if not labels or min(labels.values()) < 0:
            raise ValueError(f"the label counts of {name!r} are {dict(counts[name])}: need rows")
    set_weights = _inverse_weights({name: sum(labels.values()) for name, labels in present.items()})
    return {
        (name, label): math.sqrt(label_weight * set_weights[name])
        for name, labels in present.items()
        for label, label_weight in _inverse_weights(labels).items()
    }


def format_function(weight: float) -> RewardFunction:
    """Return the format reward: +0.5 for a well-formed completion, else -0.5."""
    return RewardFunction(
        "format", weight, lambda completion, parsed, example: 0.5 if parsed.well_formed else -0.5
    )


def answer_function(
    weight: float,
    label_weights: Mapping[tuple[str, str], float] | None,
    reader: AnswerReader,
    scales: Mapping[str, Sequence[str]] | None = None,
    under_call: float = 1.0,
) -> RewardFunction:
    """Return the answer reward: +w for the right answer, else -w; the format need not hold.

    Args:
        weight: its factor in the sum.
        label_weights: w of every (data set, label), from `balanced_weights`; None: all are 1.
        reader: by which the label is read out of the answer; evaluation uses the same.
        scales: labels of the data sets, mildest first, where a wrong answer costs `ordinal_cost`
            instead of 1. Sets of two labels have no near misses and stay as they are.
        under_call: see `ordinal_cost`.
    """
    scales = {name: labels for name, labels in (scales or {}).items() if len(labels) > 2}

    def value(completion: str, parsed: ParsedCompletion, example: LabelledExample) -> float:
        w = 1.0 if label_weights is None else label_weights[example.set_name, example.label]
        named = reader.read(example.set_name, parsed.answer)
        if named == example.label:
            return w
        labels = scales.get(example.set_name)
        if labels is None:
            return -w
        return -w * ordinal_cost(named, example.label, labels, under_call)

    return RewardFunction("answer", weight, value)


def ordinal_cost(answer: str | None, label: str, labels: Sequence[str], under_call: float) -> float:
    """Return what a wrong answer costs, by its distance from the label on an ordered scale.

        |i - j| / (K - 1)         answer j above the label i
        u |i - j| / (K - 1)       answer j below the label i: a risk called too low
        u                         no answer, or none of the labels: never cheaper than a wrong one

    Args:
        answer: the label that the answer names, None if it names none.
        label: the gold label.
        labels: all K, mildest first.
        under_call: u >= 1.
    """
    if answer is None:
        return under_call
    distance = labels.index(answer) - labels.index(label)
    return abs(distance) / (len(labels) - 1) * (under_call if distance < 0 else 1.0)


def soft_overlong(num_tokens: int, limit: int, cushion: int) -> float:
    """Return the penalty for a completion that comes near the length limit.

        0                 n <= L - c
        (L - c - n) / c   L - c < n <= L
        -1                n > L

    Args:
        num_tokens: n, sampled tokens of the completion; never characters, of which a token holds
            more in one tokenizer than in another.
        limit: L, tokens.
        cushion: c, tokens before the limit over which the penalty grows.

    References:
        Yu et al. 2025, "DAPO" (arXiv 2503.14476), eq. 13, whose c is L / 5.
    """
    return -min(max(num_tokens - (limit - cushion), 0) / cushion, 1.0)


def overlong_reward(weight: float, limit: int, cushion: int | None = None) -> LengthReward:
    """Return DAPO's soft overlong punishment; see `soft_overlong`.

    Args:
        weight: its factor in the sum.
        limit: tokens that a completion may have.
        cushion: tokens; None: a fifth of the limit, rounded down.
    """
    width = max(1, limit // 5) if cushion is None else cushion
    return LengthReward("overlong", weight, lambda tokens: soft_overlong(tokens, limit, width))


def load_reward_function(
    path: str, weight: float = 1.0, timeout_s: float | None = None
) -> RewardFunction:
    """Return a user's reward `f(completion: str, example) -> float`, named by its path.

    The function gets the completion as sampled, without the prefill, broken UTF-8 shown as U+FFFD,
    and a copy of the example: what it does to that changes nothing.

    Args:
        path: "package.module:function".
        weight: its factor in the sum.
        timeout_s: seconds that a call may take; the calls are then made in a thread of their own.

    Raises:
        RewardError: it cannot be loaded or does not take these two arguments; and at scoring, if it
            raises, ends the program, takes too long, or its value is not finite or beyond
            `LARGEST_REWARD`.
    """
    user_function = _import_function(path)

    def value(completion: str, parsed: ParsedCompletion, example: LabelledExample) -> float:
        arguments = (printable(completion), copy.copy(example))
        try:
            if timeout_s is None:
                result = user_function(*arguments)
            else:
                result = _in_time(user_function, arguments, timeout_s)
        # SystemExit too: a reward that calls exit() would end the run as if it were done.
        except (Exception, SystemExit) as error:
            raise RewardError(
                what=f"The reward function {path!r} failed on {_place(example)}",
                expected="a finite number for any completion"
                + (
                    "" if timeout_s is None else f", within rewards.timeout_s={timeout_s:g} seconds"
                ),
                got=f"{type(error).__name__}: {error}",
                remedy="Make it return a number for every text, also for a malformed one.",
            ) from error
        return _finite(result, path, example)

    return RewardFunction(path, weight, value)


def score_completion(
    functions: Iterable[Reward],
    completion: str,
    parsed: ParsedCompletion,
    example: LabelledExample,
    num_tokens: int,
) -> dict[str, float]:
    """Return the unweighted value of every reward function, by name."""
    return {
        f.name: f.of_tokens(num_tokens)
        if isinstance(f, LengthReward)
        else f.function(completion, parsed, example)
        for f in functions
    }


def total_reward(functions: Iterable[Reward], scores: Mapping[str, float]) -> float:
    """Return `sum over functions of weight * value`."""
    return math.fsum(f.weight * scores[f.name] for f in functions)


def _inverse_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """`(1/n_k) / mean_k'(1/n_k')` for every k."""
    mean = math.fsum(1 / n for n in counts.values()) / len(counts)
    return {key: 1 / n / mean for key, n in counts.items()}


def _import_function(path: str) -> Callable[[str, LabelledExample], object]:
    """The function that "package.module:function" names, if it can be called as a reward."""
    module_name, _, function_name = path.partition(":")
    try:
        if not module_name or not function_name:
            raise ImportError("the path has no module or no function")
        function = getattr(importlib.import_module(module_name), function_name)
        if not callable(function):
            raise TypeError(f"{function_name} is a {type(function).__name__}")
        # Fails for what takes other arguments, and for built-ins that do not tell theirs.
        inspect.signature(function).bind("completion", "example")
    # The module is the user's code: whatever it raises, a syntax error or exit(), they can mend.
    except (Exception, SystemExit) as error:
        raise RewardError(
            what=f"The reward function {path!r} cannot be loaded",
            expected='"package.module:function" with the arguments (completion, example), '
            "importable from where you run",
            got=f"{type(error).__name__}: {error}",
            remedy="Check the spelling, and that the package is installed or on PYTHONPATH.",
        ) from error
    imported: Callable[[str, LabelledExample], object] = function
    return imported


def _in_time(function: Callable[..., object], arguments: tuple[Any, ...], limit: float) -> object:
    """Call `function` in a thread that is left behind if it takes more than `limit` seconds."""
    outcome: list[object] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(function(*arguments))
        except BaseException as error:  # raised again by the caller
            failure.append(error)

    # A daemon: a thread that hangs must not keep the process from ending.
    thread = threading.Thread(target=call, name="reward", daemon=True)
    thread.start()
    thread.join(limit)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no value after {limit:g} seconds")
    return outcome[0]


def _finite(result: object, path: str, example: LabelledExample) -> float:
    """`result` as a float, or an error that names the function, the row and the value."""
    try:
        value = float(result)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not abs(value) <= LARGEST_REWARD:  # so that NaN fails
        raise RewardError(
            what=f"The reward function {path!r} gave no usable number for {_place(example)}",
            expected=f"a finite number between -{LARGEST_REWARD:.0e} and {LARGEST_REWARD:.0e}",
            got=reprlib.repr(result),
            remedy="Make it return a float for every text, also for a malformed one.",
        )
    return value


def _place(example: LabelledExample) -> str:
    """Which post it was, without its text."""
    return f"row {getattr(example, 'row', '(unknown)')} of {example.set_name!r}"
