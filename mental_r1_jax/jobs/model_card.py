"""The model card (README.md) of an exported model, made only from the recipe and the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import yaml

from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.stages import GRAMMAR, STAGES

# What the Hugging Face hub takes for a model: "organisation/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Recipe keys shown, as (section, key); paths and book-keeping stay out of a published card.
RECIPE = (
    ("rollout", "prompts_per_step"),
    ("rollout", "num_generations"),
    ("rollout", "temperature"),
    ("rollout", "top_p"),
    ("rollout", "top_k"),
    ("rollout", "max_prompt_length"),
    ("rollout", "max_completion_length"),
    ("rewards", "format_weight"),
    ("rewards", "answer_weight"),
    ("rewards", "answer_weighting"),
    ("rewards", "answer_match"),
    ("rewards", "custom"),
    ("crpo", "stage_entropy_rule"),
    ("crpo", "stage_entropy_scale"),
    ("crpo", "stage_entropy_threshold"),
    ("crpo", "stage_entropy_coefs"),
    ("crpo", "stage_entropy_mean"),
    ("crpo", "entropy_bonus_coef"),
    ("crpo", "kl_coef"),
    ("crpo", "kl_estimator"),
    ("crpo", "clip_epsilon_low"),
    ("crpo", "clip_epsilon_high"),
    ("crpo", "scale_rewards"),
    ("crpo", "advantage_baseline"),
    ("crpo", "aggregation"),
    ("crpo", "importance_level"),
    ("crpo", "num_iterations"),
    ("optimizer", "learning_rate"),
    ("optimizer", "schedule"),
    ("optimizer", "warmup_steps"),
    ("optimizer", "weight_decay"),
    ("optimizer", "max_grad_norm"),
    ("model", "compute_dtype"),
    ("run", "num_steps"),
    ("run", "num_epochs"),
    ("run", "seed"),
)

SCORES = ("weighted_f1", "macro_f1", "balanced_accuracy", "accuracy", "well_formed", "truncated")


class CardSet(TypedDict):
    """One data set on the card; `counts` are training posts by label, `question` may be None."""

    name: str
    asks_for: str
    question: str | None
    labels: Sequence[str]
    counts: Mapping[str, int]


def model_card(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    *,
    base_model: str,
    sets: Sequence[CardSet],
    facts: Mapping[str, Any],
) -> str:
    """The text of README.md: YAML front matter, then Markdown.

    Every number comes from the arguments.

    Args:
        config: the resolved recipe, as plain data.
        metrics: the content of `metrics.json` (fractions), or None when nothing was evaluated.
        base_model: hub id ("organisation/name") of the start model, or any name of a local one.
        sets: the data sets of the recipe.
        facts: more rows for the recipe table, such as versions.
    """
    shown = base_model if _HUB_ID.fullmatch(base_model) else re.split(r"[/\\]", base_model)[-1]
    sections = (
        _front_matter(base_model),
        f"# {_plain(shown)}, post-trained with CRPO for mental-health assessment",
        _INTRODUCTION.format(base=_plain(shown)),
        _INTENDED_USE,
        _data_sets(sets),
        _stages(),
        _usage(config, sets),
        _recipe(config, facts),
        _results(metrics),
        _CLOSING,
    )
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _front_matter(base_model: str) -> str:
    """Metadata that the hub reads; a local start model has no `base_model` there."""
    hub_id = _HUB_ID.fullmatch(base_model) is not None
    matter: dict[str, Any] = {
        "license": "other",
        "license_name": "same-as-base-model",
        **({"license_link": f"https://huggingface.co/{base_model}"} if hub_id else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base_model} if hub_id else {}),
        "tags": ["mental-health", "reasoning", "reinforcement-learning", "grpo", "crpo", "jax"],
        "metrics": ["f1", "accuracy"],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def _data_sets(sets: Sequence[CardSet]) -> str:
    lines = ["## Data sets", "", "Counts are training posts."]
    for one in sets:
        counts = [f"{_plain(label)}: {one['counts'].get(label, 0)}" for label in one["labels"]]
        total = sum(one["counts"].values())
        asks_for = f" ({_plain(one['asks_for'])})" if one["asks_for"] else ""
        lines += ["", f"### {_plain(one['name'])}{asks_for}", ""]
        lines.append(f"{total} posts. {'; '.join(counts)}.")
        if one["question"]:
            lines += ["", *(f"> {_plain(line)}" for line in one["question"].strip().splitlines())]
    return "\n".join(lines)


def _stages() -> str:
    rows = [(f"`{stage.name}`", stage.description) for stage in STAGES]
    return "\n".join(
        [
            "## Stages and prompt format",
            "",
            "A completion thinks in five stages, after cognitive appraisal theory, then answers.",
            "",
            _table(("stage", "what stands there"), rows),
            "",
            "The system turn holds the instruction, the user turn a question and the post, and the",
            "assistant turn is prefilled, so that a completion begins inside the first stage:",
            "",
            f"```text\n{GRAMMAR.skeleton()}\n```",
        ]
    )


def _usage(config: Mapping[str, Any], sets: Sequence[CardSet]) -> str:
    questions = [one["question"] for one in sets if one["question"]]
    question = questions[0] if questions else "YOUR QUESTION, WITH ITS LABELS\nStatement: "
    return "\n".join(
        [
            "## Usage",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'path = "PATH_OR_HUB_ID_OF_THIS_MODEL"',
            "tokenizer = AutoTokenizer.from_pretrained(path)",
            "model = AutoModelForCausalLM.from_pretrained(path)",
            "messages = [",
            f'    {{"role": "system", "content": {system_instruction(GRAMMAR)!r}}},',
            f'    {{"role": "user", "content": {question!r} + "THE POST"}},',
            "]",
            "prompt = tokenizer.apply_chat_template(",
            "    messages, tokenize=False, add_generation_prompt=True",
            f") + {GRAMMAR.prefill!r}",
            'inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)',
            "output = model.generate(",
            "    **inputs, do_sample=False, "
            f"max_new_tokens={config['rollout']['max_completion_length']}",
            ")",
            'completion = output[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(completion, skip_special_tokens=True))",
            "```",
            "",
            "Some chat templates refuse a system turn; then put its text in front of the question.",
        ]
    )


def _recipe(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    rows = [
        (f"`{section}.{key}`", _plain(config[section][key]))
        for section, key in RECIPE
        if config.get(section, {}).get(key) not in (None, {}, [])
    ]
    rows += [(_plain(name), _plain(value)) for name, value in facts.items()]
    return f"## Recipe\n\n{_table(('setting', 'value'), rows)}"


def _results(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Results\n\nThis model has not been evaluated: expect nothing of its answers."
    rows = []
    for name, scores in metrics["sets"].items():
        cells = [_percent(scores[score]) for score in SCORES]
        interval = scores.get("weighted_f1_interval")
        shown = "" if interval is None else " to ".join(_percent(end) for end in interval)
        rows.append((_plain(name), str(scores["n"]), *cells, shown))
    means = [_percent(metrics["average"][score]) for score in SCORES]
    rows.append(("**average**", "", *means, ""))
    names = [score.replace("_", " ").replace("f1", "F1") for score in SCORES]
    head = ("set", "posts", *names, "interval of weighted F1")
    note = (
        "Percent, on held-out posts; an answer without a readable label counts as wrong, the\n"
        "interval is a bootstrap over posts at the usual level, and the average is over sets."
    )
    return f"## Results\n\n{note}\n\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(value: Any) -> str:
    """`value` as text that cannot be taken for a table border, a tag or a link."""
    return re.sub(r"([|<>\[\]*`\\])", r"\\\1", str(value)).replace("\n", " ")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


_INTRODUCTION = """
This is {base} after Cognitive Relative Policy Optimization (CRPO), as described in the
Mental-R1 paper: group-relative policy optimization with an entropy term for each reasoning stage,
which lets early stages explore and makes late stages decide. It reads a post, reasons in stages and
ends with one of the labels named in the question. **It is a research artefact, not a diagnostic
tool.**
"""

_INTENDED_USE = """
## Intended use

For research on reasoning and assessment in mental-health text: comparing training methods, studying
the stages, and measuring agreement with annotators on the data sets below. Out of scope: diagnosis,
triage, screening or monitoring of people, decisions about care, insurance, work or education,
conversation with people in distress, and any use on posts whose writers would not expect it.
"""

_CLOSING = """
## Limits

- **Label noise.** Labels are annotators' readings of short texts, not clinical findings; part of
  what looks like an error is disagreement among people, and part of what looks right is chance.
- **Domain shift.** Posts come from few platforms, languages, years and communities. Expect lower
  scores elsewhere, and measure before relying on any.
- **Bias.** Base model and posts carry the biases of their writers; scores for groups that the data
  do not name are unknown.
- **Reasoning.** The stages are generated text. They can be fluent, plausible and wrong, and need
  not be the cause of the answer.
- **Class imbalance.** A constant answer can score high in weighted F1 on unbalanced sets: read
  macro F1 and balanced accuracy beside it.

## Responsible use

This is not a diagnostic device and no substitute for a professional. Keep a qualified person in
charge of anything that could affect someone. If you, or somebody whose post you read, may be in
danger, call the local emergency number or a crisis line, or go to the nearest emergency department;
national health services list the lines of each country.

## Privacy

Posts about mental health are sensitive data about real people, even when they are public. Run the
model where the posts are allowed to be, do not log or publish posts or completions (completions
quote them), and do not try to find out who wrote one. A model can repeat parts of what it was
trained on.

## License

That of the base model, together with the terms of the data sets; read both before use.

## Citation

Please cite the paper of the method.

```bibtex
@misc{mental-r1,
  title         = {Mental-R1: Aligning LLM Reasoning for Mental Health Assessment},
  eprint        = {2606.13176},
  archivePrefix = {arXiv},
  year          = {2026}
}
```
"""
