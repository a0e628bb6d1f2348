"""The model card (README.md) of an exported model, made only from the recipe and the results."""

from __future__ import annotations

import importlib.resources
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.release.markdown import plain, table
from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.wording import grammar_of, language_code

# What the Hugging Face hub takes for a model: "organisation/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# What of the recipe is shown: these sections whole, so that no key can be forgotten, and these keys
# of others. Paths and book-keeping stay out of a published card.
METHOD_SECTIONS = ("rollout", "rewards", "crpo", "optimizer")
OTHER_KEYS = {"model": ("compute_dtype", "lora"), "run": ("num_steps", "num_epochs", "seed")}

SCORES = ("weighted_f1", "macro_f1", "balanced_accuracy", "accuracy", "well_formed", "truncated")


def model_card(
    config: ExperimentConfig,
    metrics: Mapping[str, Any] | None,
    *,
    base_model: str,
    sets: Sequence[BenchmarkSpec],
    counts: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, Any],
    reporting: str,
    step: int | None = None,
) -> str:
    """The text of README.md: YAML front matter, then Markdown.

    Every number comes from the arguments.

    Args:
        config: the resolved recipe.
        metrics: the content of `metrics.json` (fractions), or None when nothing was evaluated.
        base_model: hub id ("organisation/name") of the start model, or any name of a local one.
        sets: the data sets of the recipe.
        counts: set name -> label -> training posts.
        facts: more rows for the recipe table, such as versions.
        reporting: the answers to a reporting guideline, as Markdown.
        step: of the exported checkpoint, to tell whether `metrics` are its.
    """
    questions = [one.question for one in sets if one.question]
    grammar = grammar_of(config.text)
    stages = [(f"`{stage.name}`", plain(stage.description)) for stage in grammar.stages]
    recipe = [(f"`{key}`", plain(value)) for key, value in shown_settings(config).items()]
    recipe += [(plain(name), plain(value)) for name, value in facts.items()]
    template = (importlib.resources.files(__package__) / "model_card.md").read_text("utf-8")
    return string.Template(template).substitute(
        front_matter=_front_matter(base_model, config),
        base=plain(shown_name(base_model)),
        data_sets="\n\n".join(_data_set(one, counts[one.name]) for one in sets),
        purpose="for mental-health assessment"
        if config.text.grammar is None
        else "with stages of its own",
        form="five stages, after cognitive appraisal theory, then answers"
        if config.text.grammar is None
        else f"{len(stages)} {'stage' if len(stages) == 1 else 'stages'}, then answers",
        shown="" if config.text.stages_in_prompt else ", which does not show this form",
        stages=table(("stage", "what stands there"), stages),
        skeleton=grammar.skeleton(),
        instruction=repr(system_instruction(grammar)),
        question=repr(questions[0] if questions else "YOUR QUESTION, WITH ITS LABELS\nStatement: "),
        prefill=repr(grammar.prefill),
        max_new_tokens=config.rollout.max_completion_length,
        recipe=table(("setting", "value"), recipe),
        results=_results(metrics, step),
        reporting=reporting,
    )


def shown_name(base_model: str) -> str:
    """A hub id as it is; of any other name only the part after the last slash."""
    return base_model if _HUB_ID.fullmatch(base_model) else re.split(r"[/\\]", base_model)[-1]


def _front_matter(base_model: str, config: ExperimentConfig) -> str:
    """Metadata that the hub reads; a local start model has no `base_model` there."""
    written, code = config.export.format, language_code(config.text)
    hub_id = _HUB_ID.fullmatch(base_model) is not None
    matter: dict[str, Any] = {
        "license": "other",
        "license_name": "same-as-base-model",
        **({"license_link": f"https://huggingface.co/{base_model}"} if hub_id else {}),
        "library_name": "peft" if written == "peft" else "transformers",
        "pipeline_tag": "text-generation",
        **({"language": code} if code else {}),
        **({"base_model": base_model} if hub_id else {}),
        "tags": ["mental-health", "reasoning", "reinforcement-learning", "grpo", "crpo", "jax"],
        "metrics": ["f1", "accuracy"],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def shown_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What the card shows of a recipe, `section.key` -> value; keys without a value are left out.

    A new key of the method is on the card without being named here.
    """
    recipe = config.model_dump(mode="json")
    if recipe["model"]["lora"]:
        del recipe["model"]["lora"]["base"]  # a path; the card names the base elsewhere
    keys = {name: tuple(recipe[name]) for name in METHOD_SECTIONS} | OTHER_KEYS
    shown = {f"{name}.{key}": recipe[name][key] for name in keys for key in keys[name]}
    return {key: value for key, value in shown.items() if value not in (None, {}, [])}


def _data_set(one: BenchmarkSpec, counts: Mapping[str, int]) -> str:
    """What a set asks for, and how many training posts each label has."""
    shown = [f"{plain(label)}: {counts.get(label, 0)}" for label in one.labels]
    asks_for = f" ({plain(one.asks_for)})" if one.asks_for else ""
    lines = [f"### {plain(one.name)}{asks_for}", ""]
    lines.append(f"{sum(counts.values())} posts. {'; '.join(shown)}.")
    if one.question:
        lines += ["", *(f"> {plain(line)}" for line in one.question.strip().splitlines())]
    return "\n".join(lines)


def _results(metrics: Mapping[str, Any] | None, step: int | None) -> str:
    if metrics is None:
        return "This model has not been evaluated: expect nothing of its answers."
    rows = []
    for name, scores in metrics["sets"].items():
        cells = [_percent(scores[score]) for score in SCORES]
        interval = scores.get("weighted_f1_interval")
        shown = "" if interval is None else " to ".join(_percent(end) for end in interval)
        rows.append((plain(name), str(scores["n"]), *cells, shown))
    means = [_percent(metrics["average"][score]) for score in SCORES]
    rows.append(("**average**", "", *means, ""))
    names = [score.replace("_", " ").replace("f1", "F1") for score in SCORES]
    head = ("set", "posts", *names, "interval of weighted F1")
    note = (
        "Percent, on held-out posts; an answer without a readable label counts as wrong, the\n"
        "interval is a bootstrap over posts at the usual level, and the average is over sets."
    )
    evaluated = metrics.get("checkpoint")
    if None not in (step, evaluated) and step != evaluated:
        note = (
            f"**These are the results of the checkpoint of step {evaluated}. The weights here are "
            f"those of\nstep {step}, which have not been evaluated.**\n\n{note}"
        )
    return f"{note}\n\n{table(head, rows)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
