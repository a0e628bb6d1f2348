"""Grammars with other stages: read from a file, checked, and used by everything that reads text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.data.traces import read_traces, template_completion, template_traces
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, load_config, parse_config
from mental_r1_jax.runs.run_folder import check_run_folder
from mental_r1_jax.text.prompts import check_grammar, render_prompt
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.tokenizer import wrap_tokenizer
from mental_r1_jax.text.wording import built_in, grammar_of

ROOT = Path(__file__).resolve().parents[2]
SLEEP = ROOT / "configs" / "grammars" / "sleep_three_stages.yaml"
MINIMAL = "model: {path: somewhere}\ndata: {sets: [A, B]}\nrun: {output_dir: out}\n"
THRESHOLD = "crpo.stage_entropy_threshold=2.5"


def recipe(*overrides: str) -> ExperimentConfig:
    return parse_config(MINIMAL, overrides, source="test")


def stages(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "description": f"what {name} holds"} for name in names]


def inline(**grammar: object) -> str:
    return f"text.grammar={yaml.safe_dump(grammar, default_flow_style=True, allow_unicode=True)}"


def grammar(*names: str, **more: object) -> Grammar:
    return grammar_of(recipe(inline(stages=stages(*names), **more), THRESHOLD).text)


@pytest.fixture
def sleep() -> Grammar:
    return grammar_of(recipe(f"text.grammar={SLEEP}", THRESHOLD).text)


def test_the_form_of_a_completion_follows_the_file(sleep: Grammar):
    assert sleep.names == ("night", "cause", "judgement")
    assert sleep.prefill == "<reading>\n<night>"
    completion = sleep.render(["awake", "rain", "so"], "Yes")
    assert completion == (
        "awake</night>\n<cause>rain</cause>\n<judgement>so</judgement>\n</reading>\n"
        "<finding>Yes</finding>"
    )
    parsed = sleep.parse(completion)
    assert parsed.well_formed and parsed.answer == "Yes"
    spans = [completion[slice(*span)] for span in parsed.stage_spans]
    assert spans == ["awake", "rain", "so"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (("<finding>Yes</finding>", ""), "<finding> is missing"),
        (("</cause>", ""), "</cause> is missing"),
        (("</reading>", "</reading></reading>"), "</reading> stands 2 times"),
        (("rain", " "), "<cause> is empty"),
        (("awake</night>", "awake<night></night>"), "<night> stands 2 times"),
    ],
)
def test_a_completion_of_another_grammar_is_judged_by_it(
    sleep: Grammar, damage: tuple[str, str], reason: str
):
    parsed = sleep.parse(sleep.render(["awake", "rain", "so"], "Yes").replace(*damage))
    assert not parsed.well_formed and parsed.reason == reason


def test_neither_grammar_takes_the_other_s_completions(sleep: Grammar):
    ours = GRAMMAR.render(list("abcde"), "Yes")
    assert not sleep.parse(ours).well_formed and sleep.parse(ours).answer is None
    theirs = sleep.render(list("abc"), "Yes")
    assert not GRAMMAR.parse(theirs).well_formed and GRAMMAR.parse(theirs).answer is None


def test_prompt_and_prefill_are_the_grammar_s(sleep: Grammar, chatml):
    prompt = render_prompt(chatml, "Q: ", "rain", 4000, sleep)
    assert prompt.text.endswith("<|im_start|>assistant\n<reading>\n<night>")
    assert "Think in 3 stages" in prompt.text and "mental health" not in prompt.text
    assert "<finding>LABEL</finding>" in prompt.text
    check_grammar(chatml, sleep)


def test_thinking_that_the_template_opens_with_the_grammar_s_tag_is_not_opened_twice(
    sleep: Grammar, make_byte_level
):
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}bot: <reading>\n"
    text = render_prompt(
        wrap_tokenizer(make_byte_level(template=template)), "Q: ", "a", 4000, sleep
    )
    assert (
        text.text.count("bot: <reading>\n<night>") == 1 and "<reading>\n<reading>" not in text.text
    )


@pytest.mark.parametrize("number", [1, 2, 20])
def test_one_to_twenty_stages(number: int):
    names = [f"s{i}" for i in range(number)]  # s1 begins s10 to s19
    made = grammar(*names)
    completion = made.render([f"text {i}" for i in range(number)], "No")
    parsed = made.parse(completion)
    assert parsed.well_formed and parsed.answer == "No"
    spans = [completion[slice(*span)] for span in parsed.stage_spans]
    assert spans == [f"text {i}" for i in range(number)]


def test_tags_may_be_of_any_script():
    made = grammar("观察", "रात", "حالة", answer_tag="答案")
    parsed = made.parse(made.render(["雨", "बारिश", "مطر"], "是"))
    assert parsed.well_formed and parsed.answer == "是"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"stages": []}, ["stages", "at least 1 item"]),
        ({"stages": stages(*(f"s{i}" for i in range(21)))}, ["stages", "at most 20 items"]),
        ({"stages": stages("a", "b", "a")}, ["once", "'a' 2 times"]),
        ({"stages": stages("a", "answer")}, ["'answer' 2 times"]),
        ({"stages": stages("a"), "think_tag": "a"}, ["'a' 2 times"]),
        ({"stages": stages("a b")}, ["stages.0.name", "a letter first"]),
        ({"stages": stages("<a>")}, ["stages.0.name"]),
        ({"stages": stages("1a")}, ["stages.0.name"]),
        ({"stages": stages("a" * 41)}, ["stages.0.name", "40 at most"]),
        ({"stages": [{"name": "a"}]}, ["stages.0.description is required"]),
        ({"stages": [{"name": "a", "description": "<b>"}]}, ["stages.0.description", "'<'"]),
        ({"stages": stages("a"), "instruction": "go"}, ["instruction", "{form} once"]),
        ({"stages": stages("a"), "tags": 1}, ["unknown key 'tags'"]),
        ({}, ["stages is required"]),
    ],
)
def test_a_wrong_file_is_one_message_that_names_the_place(
    content: dict[str, object], parts: list[str], tmp_path: Path
):
    file = tmp_path / "grammar.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        recipe(f"text.grammar={file}")
    assert all(part in str(caught.value) for part in [*parts, str(file)]), str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["crpo.stage_entropy_threshold=3.5 is for 5 stages", "has 3", "to 2.5"]),
        (
            ["crpo.stage_entropy_rule=explicit", "crpo.stage_entropy_coefs=[1, 1, 1, 1, 1]"],
            ["crpo.stage_entropy_coefs", "each of the 3 stages (night, cause, judgement)"],
        ),
        (
            ["crpo.stage_entropy_rule=target"],
            ["crpo.stage_entropy_targets", "3 stages", "got [1.1, 1.1, 1.0, 0.8, 0.6]"],
        ),
        (
            [THRESHOLD, "crpo.stage_entropy_targets=[1, 1]"],
            ["crpo.stage_entropy_targets", "got [1.0, 1.0]"],
        ),
        (
            [THRESHOLD, "text.wording={stages: {reaction: sad}}"],
            ["'reaction'", "['night', 'cause', 'judgement']"],
        ),
    ],
)
def test_keys_with_a_number_a_stage_are_checked(overrides: list[str], parts: list[str]):
    with pytest.raises(UserError) as caught:
        recipe(f"text.grammar={SLEEP}", *overrides)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_what_fits_the_stages_is_taken():
    named = f"text.grammar={SLEEP}"
    explicit = ["crpo.stage_entropy_rule=explicit", "crpo.stage_entropy_coefs=[-1, 0, 1]"]
    assert recipe(named, *explicit).crpo.stage_entropy_coefs == (-1.0, 0.0, 1.0)
    target = ["crpo.stage_entropy_rule=target", "crpo.stage_entropy_targets=[1, 1, 0.5]"]
    assert recipe(named, *target).text.stage_names == ("night", "cause", "judgement")
    assert recipe(named, "crpo.stage_entropy_rule=off").crpo.stage_entropy_threshold == 3.5
    assert recipe(named, "crpo.stage_entropy_scale=0").text.grammar is not None


def test_a_resolved_recipe_holds_the_grammar_and_another_order_is_another_run(tmp_path: Path):
    folder = f"run.output_dir={tmp_path / 'run'}"
    config = recipe(f"text.grammar={SLEEP}", THRESHOLD, folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "run") == config
    check_run_folder(tmp_path / "run", config)
    turned = config.text.grammar.model_copy(update={"stages": config.text.grammar.stages[::-1]})
    text = config.text.model_copy(update={"grammar": turned})
    with pytest.raises(UserError, match=r"text\.grammar\.stages"):
        check_run_folder(tmp_path / "run", config.model_copy(update={"text": text}))


def test_wordings_come_before_the_file_and_languages_of_ours_only_around_it():
    named = [f"text.grammar={SLEEP}", THRESHOLD, "text.language=spanish"]
    made = grammar_of(recipe(*named).text)
    assert made.stages[0].description.startswith("what is said about falling asleep")
    assert made.label == built_in("spanish").label
    assert made.instruction.startswith("You read what people write about their nights")
    own = "text.wording={stages: {night: la noche}, instruction: 'Lee. {form}'}"
    made = grammar_of(recipe(*named, own).text)
    assert made.stages[0].description == "la noche" and made.instruction == "Lee. {form}"
    assert made.stages[1].description.startswith("what may stand behind it")


def test_template_traces_need_wordings_of_every_stage(sleep: Grammar):
    completion = template_completion("i lie awake", "Yes", random.Random(0), sleep)
    parsed = sleep.parse(completion)
    assert parsed.well_formed and "i lie awake" in completion[slice(*parsed.stage_spans[0])]
    bare = grammar("night", "cause")
    with pytest.raises(UserError, match="none of night, cause.*sft.traces"):
        template_traces({}, {}, per_set=1, label_noise=0.0, seed=0, grammar=bare)


def test_traces_of_a_file_are_checked_by_the_grammar(sleep: Grammar, tmp_path: Path):
    file = tmp_path / "traces.jsonl"
    good = sleep.render(["awake", "rain", "so"], "Yes")
    for completion in (good, sleep.prefill + good):
        file.write_text(json.dumps({"prompt": "Q", "completion": completion}))
        (trace,) = read_traces(file, sleep)
        assert trace.completion == good
    with pytest.raises(UserError, match="stimulus, primary_appraisal"):
        read_traces(file)
