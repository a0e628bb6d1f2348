import re
import sys
import types

import numpy as np
import pytest
import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.benchmarks import BenchmarkSpec
from mental_r1_jax.release.model_card import METHOD_SECTIONS, model_card, shown_settings
from mental_r1_jax.text.prompts import system_instruction
from mental_r1_jax.text.stages import GRAMMAR, STAGES
from mental_r1_jax.text_section import TextConfig

QUESTION = "How lonely does the writer sound? Answer with [1-2], [2-3] or A|B.\nStatement: "
SETS = [
    BenchmarkSpec("Levels-Synthetic", "a made-up level", ("[1-2]", "[2-3]", "A|B"), QUESTION),
    BenchmarkSpec("Plain", "", ("Yes", "No"), None),
]
COUNTS = {"Levels-Synthetic": {"[1-2]": 71, "[2-3]": 83}, "Plain": {"Yes": 97, "No": 13}}
FACTS = {"mental_r1_jax": "0.31.7", "weights": "bfloat16", "updates": 4321}
SCORES = {
    "weighted_f1": 0.4321,
    "macro_f1": 0.3456,
    "balanced_accuracy": 0.4567,
    "accuracy": 0.5678,
    "well_formed": 0.9876,
    "truncated": 0.0432,
}
METRICS = {
    "sets": {"Levels-Synthetic": SCORES | {"n": 613, "weighted_f1_interval": [0.3987, 0.4711]}},
    "average": SCORES,
}
PAPER, GUIDELINE = {"2606.13176", "2026"}, {"2025", "10.1038", "024", "03425", "5"}
PROSE = PAPER | GUIDELINE
REPORTING = "| item | this run |\n| --- | --- |\n| size | small |"


@pytest.fixture(scope="module")
def config():
    recipe = {
        "model": {"path": "/secret/place/tiny"},
        "data": {"sets": ["Levels-Synthetic"]},
        "run": {"output_dir": "/secret/run", "seed": 17, "num_steps": 321},
        "rollout": {"max_completion_length": 389, "temperature": 0.83},
        "crpo": {
            "stage_entropy_rule": "explicit",
            "stage_entropy_coefs": [-0.051, -0.052, -0.053, 0.054, 0.055],
        },
        "optimizer": {"learning_rate": 3.7e-6},
        "rewards": {"custom": {"my.package:my_reward": 0.37}},
    }
    return ExperimentConfig.model_validate(recipe)


def card(config, metrics=METRICS, base_model="some-org/Base-Model", sets=SETS, step=None):
    return model_card(
        config,
        metrics,
        base_model=base_model,
        sets=sets,
        counts=COUNTS,
        facts=FACTS,
        reporting=REPORTING,
        step=step,
    )


def front_matter(text):
    _, matter, body = text.split("---\n", 2)
    return yaml.safe_load(matter), body


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for item in tree.items() for part in item for leaf in leaves(part)]
    several = isinstance(tree, list | tuple)
    return [leaf for part in tree for leaf in leaves(part)] if several else [tree]


def test_front_matter_is_yaml_that_the_hub_reads(config):
    matter, body = front_matter(card(config))
    assert matter["library_name"] == "transformers"
    assert matter["pipeline_tag"] == "text-generation"
    assert matter["base_model"] == "some-org/Base-Model"
    assert matter["license"] == "other"
    assert {"mental-health", "crpo"} <= set(matter["tags"])
    assert body.lstrip().startswith("# some-org/Base-Model, post-trained")


@pytest.mark.parametrize("path", ["/secret/place/tiny", "../secret/place/tiny", "tiny"])
def test_local_start_model_gives_only_its_name(config, path):
    text = card(config, base_model=path)
    matter, _ = front_matter(text)
    assert "base_model" not in matter and "license_link" not in matter
    assert "# tiny, post-trained" in text
    assert "secret" not in text


def number_strings(text):
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)*(?:e[+-]?\d+)?", text))


def test_every_number_comes_from_the_inputs(config):
    text = re.sub(r"```python.*?```", "", card(config), flags=re.DOTALL)
    totals = [sum(of_set.values()) for of_set in COUNTS.values()]
    labels = [one.labels for one in SETS]
    inputs = [config.model_dump(mode="json"), labels, QUESTION, COUNTS, FACTS, METRICS, totals]
    given = " ".join(str(leaf) for leaf in leaves(inputs))
    percent = {f"{100 * x:.1f}" for x in leaves(METRICS) if isinstance(x, float)}
    zero_count = {"0"}  # no training post has the label "A|B"
    assert number_strings(text) <= number_strings(given) | percent | PROSE | zero_count


def test_inputs_are_on_the_card(config):
    text = card(config)
    assert "| `optimizer.learning_rate` | 3.7e-06 |" in text
    assert "| `rollout.temperature` | 0.83 |" in text
    assert "-0.053" in text
    assert "my.package:my_reward" in text
    assert "| updates | 4321 |" in text
    assert REPORTING in text.split("## Reporting after TRIPOD-LLM")[1].split("\n## ")[0]
    assert "154 posts. \\[1-2\\]: 71; \\[2-3\\]: 83; A\\|B: 0." in text
    assert "613 | 43.2 | 34.6 | 45.7 | 56.8 | 98.8 | 4.3 | 39.9 to 47.1 |" in text
    for stage in STAGES:
        assert f"| `{stage.name}` | {stage.description} |" in text


def test_every_key_of_the_method_is_on_the_card_and_no_path(config):
    text = card(config)
    for name in METHOD_SECTIONS:
        section = getattr(config, name)
        for key, field in type(section).model_fields.items():
            assert "Path" not in str(field.annotation), f"{name}.{key} may tell where files lie"
            present = getattr(section, key) not in (None, {}, ())
            assert (f"| `{name}.{key}` |" in text) == present, f"{name}.{key}"
    assert "secret" not in text


def test_other_keys_of_the_card_are_of_the_recipe(config):
    shown = shown_settings(config)
    assert shown["model.compute_dtype"] == "bfloat16"
    assert (shown["run.seed"], shown["run.num_steps"], shown["run.num_epochs"]) == (17, 321, 1.0)


def test_tables_have_one_width(config):
    """A label or value with a bar in it must not open a new column."""
    for table in re.findall(r"(?:^\|.*\n)+", card(config), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_unevaluated_model_says_so(config):
    text = card(config, metrics=None)
    assert "has not been evaluated" in text
    assert "weighted F1 |" not in text


def test_limits_and_responsible_use_are_stated(config):
    text = " ".join(card(config).split())
    for words in (
        "not a diagnostic",
        "crisis line",
        "Label noise",
        "Domain shift",
        "Bias",
        "Privacy",
        "Intended use",
        "2606.13176",
    ):
        assert words in text


def test_usage_snippet_builds_the_prompt_of_training(config, monkeypatch, capsys):
    prompts, options = [], []

    class Tokenizer:
        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return "".join(f"[{turn['role']}]{turn['content']}" for turn in messages) + "[turn]"

        def __call__(self, prompt, return_tensors, add_special_tokens):
            prompts.append(prompt)
            return {"input_ids": np.zeros((1, 3), int)}

        def decode(self, ids, skip_special_tokens):
            return str(ids.tolist())

    class Model:
        def generate(self, input_ids, **rest):
            options.append(rest)
            return np.arange(5)[None]

    fake = types.ModuleType("transformers")
    for name, value in (("AutoTokenizer", Tokenizer()), ("AutoModelForCausalLM", Model())):
        loader = types.SimpleNamespace(from_pretrained=lambda path, value=value: value)
        setattr(fake, name, loader)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    snippet = re.search(r"```python\n(.*?)```", card(config), flags=re.DOTALL).group(1)
    exec(compile(snippet, "snippet", "exec"), {})
    expected = f"[system]{system_instruction()}[user]{QUESTION}THE POST[turn]{GRAMMAR.prefill}"
    assert prompts == [expected]
    assert options == [{"do_sample": False, "max_new_tokens": 389}]
    assert capsys.readouterr().out == "[3, 4]\n"


@pytest.mark.parametrize(("evaluated", "foreign"), [(40, False), (None, False), (60, True)])
def test_results_of_another_checkpoint_are_called_so(config, evaluated, foreign):
    text = card(config, METRICS | {"checkpoint": evaluated}, step=40)
    said = "checkpoint of step 60. The weights here are those of\nstep 40" in text
    assert said is foreign
    assert ("have not been evaluated" in text) is foreign


def test_the_card_of_another_grammar_shows_its_form_and_language(config):
    stages = ({"name": "night", "description": "夜里"}, {"name": "end", "description": "判断"})
    grammar = {"stages": stages, "answer_tag": "finding"}
    text = TextConfig(language="chinese", grammar=grammar)
    crpo = config.crpo.model_copy(update={"stage_entropy_coefs": (-0.1, 0.1)})
    written = card(config.model_copy(update={"text": text, "crpo": crpo}))
    matter, body = front_matter(written)
    assert matter["language"] == "zh"
    assert "thinks in 2 stages, then answers" in body and "cognitive appraisal" not in body
    assert "| `night` | 夜里 |" in body and "stimulus" not in body
    assert "<finding>标签</finding>" in body
    assert front_matter(card(config))[0]["language"] == "en"
