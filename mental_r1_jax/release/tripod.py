"""The part of a model card that answers the TRIPOD-LLM reporting guideline, filled from a run.

The guideline has 19 numbered items. Each is answered in our words, from the recipe, the run and its
evaluation; what these do not know is said to be not reported, and left to whoever publishes.

Source: Gallifant et al., Nature Medicine 2025, doi 10.1038/s41591-024-03425-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec
from mental_r1_jax.evaluation.run_metrics import duration
from mental_r1_jax.release.markdown import plain, table

NOT_REPORTED = "not reported"

# Groups of estimates of a set in `metrics.json`, each with its 95% interval.
_PERFORMANCE, _UNCERTAINTY = ("clinical", "ordinal"), ("calibration",)
_ACRONYMS = ("ppv", "npv", "auroc", "auprc", "mae", "ece", "aurc")


@dataclass(frozen=True)
class RunRecord:
    """What a run knows of itself beyond its recipe.

    Attributes:
        model_type: of the network, as in its `config.json`.
        parameters: numbers in the network.
        adapter_parameters: numbers in its adapters, 0 without them.
        started_from_run: whether the start model was itself a run, such as a cold start.
        counts: split -> set -> label -> posts.
        supervised: whether it was trained on written examples, without rewards.
        steps: of training that were done; None where the run has no metrics.
        seconds: of these steps.
        evaluated_split: what the evaluation of the card was made on, or None.
    """

    model_type: str
    parameters: int
    adapter_parameters: int
    started_from_run: bool
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    supervised: bool
    steps: int | None
    seconds: float | int | None
    evaluated_split: str | None


def tripod_block(
    config: ExperimentConfig,
    record: RunRecord,
    metrics: Mapping[str, Any] | None,
    sets: Sequence[BenchmarkSpec],
    *,
    base: str,
) -> str:
    """Markdown: a table of items, and one of posts by split; every given string is escaped.

    Args:
        config: the resolved recipe.
        record: what else the run knows.
        metrics: the content of `metrics.json`, or None when nothing was evaluated.
        sets: the data sets of the recipe.
        base: what the start model is called.
    """
    rows = [
        *_purpose(sets),
        *_data(config),
        *_model(config, record, base),
        *_outcome(config, metrics, record),
        *_people_and_compute(config, record),
        *_found(metrics),
    ]
    rows.sort(key=lambda row: int(row[0].split(",")[0].split("-")[0]))
    answers = table(("item", "about", "this run"), rows)
    posts = _posts_by_split(record.counts, sets)
    return f"{answers}\n\nPosts by split (items 5 and 16):\n\n{posts}"


Row = tuple[str, str, str]


def _purpose(sets: Sequence[BenchmarkSpec]) -> list[Row]:
    tasks = "; ".join(
        f"{plain(one.name)}: {plain(one.asks_for or 'a label')} ({len(one.labels)} labels"
        f"{', ordered' if one.ordered else ''})"
        for one in sets
    )
    return [
        ("1-4", "kind of study, task", f"fine-tuning and evaluation of an LLM; {tasks}"),
        ("3", "intended use and users", "see Intended use; use in a care pathway is out of scope"),
        ("3", "target population", NOT_REPORTED),
    ]


def _data(config: ExperimentConfig) -> list[Row]:
    data = config.data
    handled = [f"duplicate posts: {data.on_duplicate}", "posts cut to fit the prompt's limit"]
    if data.limit_per_set is not None:
        handled.append(f"at most {data.limit_per_set} training posts a set, evenly spaced")
    if data.label_noise:
        handled.append(f"labels drawn at random for a share of {data.label_noise} training posts")
    weighting = config.rewards.answer_weighting
    return [
        ("5", "sources of the posts, languages, countries, dates", NOT_REPORTED),
        ("5", "pre-processing and quality checks", "; ".join(handled)),
        ("5", "missing and imbalanced data", f"rewards of right answers: {weighting}"),
        ("8", "who labelled the posts, how, and how well they agreed", NOT_REPORTED),
    ]


def _model(config: ExperimentConfig, record: RunRecord, base: str) -> list[Row]:
    size = f"{plain(base)} ({plain(record.model_type)}), {record.parameters:,} parameters"
    if record.adapter_parameters:
        size += f"; {record.adapter_parameters:,} of low-rank adapters were trained, the rest not"
    own = ", ".join(plain(name) for name in config.rewards.custom)
    reward = f"rules for form and answer{f', and {own}' if own else ''}; no human feedback"
    if record.supervised:
        reward = "nothing: supervised on written examples"
    return [
        ("6", "model, size", size),
        ("6", "date of the model's last training", NOT_REPORTED),
        ("6", "building steps and training", _training(config, record)),
        ("6, 11", "alignment: what is rewarded", reward),
        ("9", "prompt", "instruction and questions: see Stages and prompt format, Data sets"),
        ("9", "how the prompt was found, and on which data", NOT_REPORTED),
        ("10", "summarisation", "does not apply"),
    ]


def _training(config: ExperimentConfig, record: RunRecord) -> str:
    start = "a run of its own, such as a cold start" if record.started_from_run else "that model"
    done = NOT_REPORTED if record.steps is None else str(record.steps)
    if record.supervised:
        sft = config.sft
        how, amount = "supervised fine-tuning", f"{sft.batch_size} examples a step"
        rate = f"peak learning rate {sft.optimizer.learning_rate}"
    else:
        rollout = config.rollout
        how = "reinforcement learning"
        amount = (
            f"{rollout.prompts_per_step} prompts a step, {rollout.num_generations} completions each"
        )
        rate = (
            f"peak learning rate {config.optimizer.learning_rate}, "
            f"KL coefficient {config.crpo.kl_coef}"
        )
    return f"{how} from {start}; steps done: {done}; {amount}; {rate}; all settings: see Recipe"


def _outcome(
    config: ExperimentConfig, metrics: Mapping[str, Any] | None, record: RunRecord
) -> list[Row]:
    votes = config.evaluate.num_votes
    decoding = "greedy" if votes == 1 else f"majority of {votes} samples"
    limit, seed = config.rollout.max_completion_length, config.run.seed
    how = (
        f"{decoding}, at most {limit} tokens, seed {seed} (by the recipe)"
        if metrics
        else "not evaluated"
    )
    output = (
        "text in stages, then an answer, from which one label of the set is read "
        f"({config.rewards.answer_match}); an unreadable answer counts as wrong"
    )
    return [
        ("6", "decoding", how),
        ("6, 7", "output and outcome", output),
        ("7", "evaluation data", _held_out(config, metrics, record)),
        ("7", "comparison with people or other models", NOT_REPORTED),
    ]


def _held_out(
    config: ExperimentConfig, metrics: Mapping[str, Any] | None, record: RunRecord
) -> str:
    if metrics is None:
        return "not evaluated"
    posts = sum(scores["n"] for scores in metrics["sets"].values())
    split = f"the {record.evaluated_split} split" if record.evaluated_split else "held-out posts"
    repeats = "only the most held-out one" if config.data.on_duplicate == "drop" else "all of them"
    return f"{posts} posts of {split}; a text that occurs in several splits is kept in {repeats}"


def _people_and_compute(config: ExperimentConfig, record: RunRecord) -> list[Row]:
    time = NOT_REPORTED
    if record.seconds is not None:
        time = f"{duration(record.seconds)} of training steps, in {config.model.compute_dtype}"
    return [
        ("12", "compute: time", time),
        ("12", "compute: devices, energy, cost", NOT_REPORTED),
        ("13", "ethics approval and consent", NOT_REPORTED),
        ("14", "funding, conflicts of interest, protocol, registration", NOT_REPORTED),
        ("14", "code", "see Recipe for the version of the program, and the seed"),
        ("14", "availability of the data", "posts are not part of this folder; see License"),
        ("15", "involvement of patients and the public", NOT_REPORTED),
        ("16", "people behind the posts: number, age, gender, setting", NOT_REPORTED),
    ]


def _found(metrics: Mapping[str, Any] | None) -> list[Row]:
    sets = {} if metrics is None else metrics["sets"]
    f1 = []
    for name, scores in sets.items():
        interval = scores.get("weighted_f1_interval")
        f1.append(f"{plain(name)}: {_estimate('weighted F1', scores['weighted_f1'], interval)}")
    unknown = NOT_REPORTED if sets else "not evaluated"
    return [
        ("17", "performance", "; ".join(f1) or unknown),
        ("17", "clinical and ordinal measures", _estimates(sets, _PERFORMANCE) or unknown),
        ("17", "uncertainty and calibration", _estimates(sets, _UNCERTAINTY) or unknown),
        ("17", "groups and fairness", _groups(sets) or unknown),
        ("18", "updates of the model", NOT_REPORTED),
        ("19", "limitations, oversight, usability", "see Limits, Responsible use and Privacy"),
    ]


def _estimates(sets: Mapping[str, Any], groups: Sequence[str]) -> str:
    """Every estimate of these groups that has a value, by set."""
    parts = []
    for name, scores in sets.items():
        shown = [
            _estimate(_words(measure), one["value"], one.get("interval"))
            for group in groups
            for measure, one in (scores.get(group) or {}).items()
            if isinstance(one, Mapping) and one.get("value") is not None
        ]
        if shown:
            parts.append(f"{plain(name)}: {', '.join(shown)}")
    return "; ".join(parts)


def _groups(sets: Mapping[str, Any]) -> str:
    """Whether an evaluation compared groups; its report has the numbers."""
    compared = [plain(name) for name, scores in sets.items() if scores.get("groups")]
    return f"compared in the report of {', '.join(compared)}" if compared else ""


def _words(measure: str) -> str:
    """The key of a measure as people write it."""
    return measure.upper() if measure in _ACRONYMS else measure.replace("_", " ")


def _estimate(name: str, value: float, interval: Sequence[float] | None) -> str:
    text = f"{name} {value:.3f}"
    return text if interval is None else f"{text} ({interval[0]:.3f} to {interval[1]:.3f})"


def _posts_by_split(
    counts: Mapping[str, Mapping[str, Mapping[str, int]]], sets: Sequence[BenchmarkSpec]
) -> str:
    """One row a label of a set, and one for the whole set."""
    rows = []
    for one in sets:
        of_splits = [counts.get(split, {}).get(one.name, {}) for split in SPLITS]
        totals = [str(sum(of_labels.values())) for of_labels in of_splits]
        rows.append((f"**{plain(one.name)}**", *totals))
        for label in one.labels:
            shown = [str(of_labels.get(label, 0)) for of_labels in of_splits]
            rows.append((f"{plain(one.name)}: {plain(label)}", *shown))
    return table(("set and label", *SPLITS), rows)
