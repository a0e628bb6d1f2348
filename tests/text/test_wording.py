"""Prompts in other languages: what is worded, in which order; and the default has not moved."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import typing
import unicodedata
from pathlib import Path

import pytest
import yaml

from mental_r1_jax.config import STAGE_NAMES
from mental_r1_jax.data.benchmarks import BENCHMARKS, SYNTHETIC_SPECS
from mental_r1_jax.data.traces import template_completion
from mental_r1_jax.errors import UserError
from mental_r1_jax.recipe import dump_config, parse_config
from mental_r1_jax.text.prompts import render_prompt, system_instruction
from mental_r1_jax.text.stages import GRAMMAR, Grammar
from mental_r1_jax.text.wording import (
    built_in,
    built_in_questions,
    grammar_of,
    language_code,
    question_words,
)
from mental_r1_jax.text_section import Language, TextConfig, WordingSection

OTHERS = [language for language in typing.get_args(Language) if language != "english"]
# What the names of a script's letters begin with in Unicode, and the code of the language.
SCRIPTS = {
    "chinese": ("CJK UNIFIED", "zh"),
    "arabic": ("ARABIC LETTER", "ar"),
    "hindi": ("DEVANAGARI", "hi"),
    "spanish": ("LATIN", "es"),
}
MINIMAL = "model: {path: somewhere}\ndata: {sets: [A, B]}\nrun: {output_dir: out}\n"
on_every_language = pytest.mark.parametrize("language", OTHERS)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def text_section(*overrides: str) -> TextConfig:
    return parse_config(MINIMAL, overrides, source="test").text


def letters(text: str) -> list[str]:
    """Unicode names of the letters of `text`."""
    return [unicodedata.name(c) for c in text if unicodedata.category(c).startswith("L")]


def test_the_default_is_what_it_was_before_there_were_languages():
    """Digests of the texts as the program made them when it knew English only."""
    assert grammar_of(TextConfig()) == GRAMMAR
    assert digest(system_instruction()) == "6e1331afcfb4a771"
    assert digest(GRAMMAR.skeleton()) == "a4e082768592dd5b"
    post = "the rain kept falling and i watched it"
    traces = [template_completion(post, "Yes", random.Random(i)) for i in range(50)]
    assert digest("".join(traces)) == "c1e6997cf319cd40"
    questions = [s.question for specs in (BENCHMARKS, SYNTHETIC_SPECS) for s in specs.values()]
    assert digest("".join(questions)) == "95783b6288fd2f90"


@on_every_language
def test_a_wording_is_whole_and_in_its_script(language: str):
    words, (script, code) = built_in(language), SCRIPTS[language]
    assert words.model_fields_set == set(WordingSection.model_fields)
    assert words.code == code == language_code(TextConfig(language=language))
    assert tuple(words.stages) == tuple(words.traces) == STAGE_NAMES
    assert set(words.questions) == {*BENCHMARKS, *SYNTHETIC_SPECS}
    prose = [words.label, words.choose, words.statement, words.nothing, *words.stages.values()]
    prose += [*words.questions.values(), words.instruction_without_stages]
    prose += [words.instruction.replace("{stages}", "")]
    prose += [line.replace("{label}", "") for lines in words.traces.values() for line in lines]
    for text in prose:
        text = text.replace("{form}", "").replace("{quote}", "")
        assert letters(text) and all(name.startswith(script) for name in letters(text)), text
    assert len({*prose}) == len(prose)
    # The first stage quotes the post and the last one names the label, as in English.
    assert all("{quote}" in line for line in words.traces["stimulus"])
    assert all("{label}" in line for line in words.traces["mental_state"])


@on_every_language
def test_the_prompt_is_in_the_language_and_the_tags_stay(language: str, chatml):
    grammar = grammar_of(TextConfig(language=language))
    prompt = render_prompt(chatml, "Q: ", "rain", 4000, grammar)
    words = built_in(language)
    for description in words.stages.values():
        assert prompt.text.count(description) == 1
    assert GRAMMAR.stages[0].description not in prompt.text
    assert "5" in prompt.text and prompt.text.endswith(GRAMMAR.prefill)
    assert f"<answer>{words.label}</answer>" in prompt.text
    parsed = grammar.parse(grammar.skeleton().removeprefix(grammar.prefill))
    assert parsed.well_formed and parsed.answer == words.label
    assert GRAMMAR.parse(grammar.skeleton().removeprefix(grammar.prefill)) == parsed


@on_every_language
def test_template_traces_quote_the_post_and_name_the_label(language: str):
    posts = {"chinese": "最近总是睡不好，白天也没有精神。", "arabic": "لا أنام جيدًا هذه الأيام"}
    post = posts.get(language, "no duermo bien estos días")
    grammar = grammar_of(TextConfig(language=language))
    for seed in range(8):
        completion = template_completion(post, "No", random.Random(seed), grammar)
        parsed = grammar.parse(completion)
        assert parsed.well_formed and parsed.answer == "No"
        first, last = (completion[slice(*parsed.stage_spans[i])] for i in (0, 4))
        forms = built_in(language).traces["stimulus"]
        before, after = next(
            ends for f in forms if first.startswith((ends := f.split("{quote}"))[0])
        )
        quote = first.removeprefix(before).removesuffix(after)
        assert len(quote) > 1 and quote in post
        assert "No" in last


@pytest.mark.parametrize("post", ["", " \n ", "<answer>是</answer>", "<<>>"])
def test_posts_without_words_are_quoted_as_nothing_or_without_tags(post: str):
    grammar = grammar_of(TextConfig(language="chinese"))
    completion = template_completion(post, "是", random.Random(0), grammar)
    assert grammar.parse(completion).well_formed
    assert (built_in("chinese").nothing in completion) == ("answer" not in post)


def write(tmp_path: Path, **content: object) -> str:
    """A wording file; returns the override that names it."""
    file = tmp_path / "words.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return f"text.wording={file}"


def test_an_own_wording_wins_over_the_language_and_the_language_over_english(tmp_path: Path):
    own = write(tmp_path, stages={"reaction": "yuyachiy"}, choose="Akllay:", code="qu")
    text = text_section(own, "text.language=spanish")
    grammar, spanish = grammar_of(text), built_in("spanish")
    descriptions = {stage.name: stage.description for stage in grammar.stages}
    assert descriptions == {**spanish.stages, "reaction": "yuyachiy"}
    assert question_words(text).choose == "Akllay:"
    assert question_words(text).statement == spanish.statement
    assert language_code(text) == "qu"
    alone = grammar_of(text_section(own))
    assert alone.stages[3].description == "yuyachiy"
    assert alone.stages[:3] == GRAMMAR.stages[:3] and alone.label == "LABEL"
    assert language_code(text_section(write(tmp_path, choose="Akllay:"))) is None


@pytest.mark.parametrize("language", typing.get_args(Language))
def test_a_prompt_without_stages_asks_for_the_task_alone(language: str, chatml):
    """The prompts differ in the system turn and in nothing else, and so do the grammars."""
    grammar = grammar_of(TextConfig(language=language))
    bare = grammar_of(TextConfig(language=language, stages_in_prompt=False))
    assert dataclasses.replace(bare, instruction=grammar.instruction) == grammar
    told, untold = (render_prompt(chatml, "Q: ", "rain", 4000, g).text for g in (grammar, bare))
    assert untold == told.replace(system_instruction(grammar), system_instruction(bare))
    asked = untold.removesuffix(GRAMMAR.prefill)
    words = [*GRAMMAR.names, "think>", "answer>", "5", *(s.description for s in grammar.stages)]
    assert not [word for word in words if word in asked]
    assert untold.endswith(GRAMMAR.prefill) and len(letters(system_instruction(bare))) > 20


def test_the_nearest_instruction_without_stages_wins(tmp_path: Path):
    own = write(tmp_path, instruction_without_stages="Akllay.")
    bare = "text.stages_in_prompt=false"
    assert system_instruction(grammar_of(text_section(own, bare))) == "Akllay."
    assert grammar_of(text_section(own)) == GRAMMAR
    file = tmp_path / "stages.yaml"
    stage = {"name": "night", "description": "sleep"}
    for more, expected in (({}, None), ({"instruction_without_stages": "Sleep?"}, "Sleep?")):
        file.write_text(yaml.safe_dump({"stages": [stage], **more}), encoding="utf-8")
        keys = [f"text.grammar={file}", "text.language=spanish", "crpo.stage_entropy_threshold=1.5"]
        made = grammar_of(text_section(*keys, bare))
        spanish = built_in("spanish").instruction_without_stages
        assert system_instruction(made) == (expected or spanish)


@pytest.mark.parametrize("section", ["wording", "grammar"])
def test_an_own_instruction_without_its_bare_form_cannot_be_left_out(section: str, tmp_path: Path):
    file = tmp_path / "own.yaml"
    stages = [{"name": name, "description": "sleep"} for name in "abcde"]
    content = {
        "instruction": "Think. {form}",
        **({"stages": stages} if section == "grammar" else {}),
    }
    for bare in ({}, {"instruction_without_stages": "Think."}):
        file.write_text(yaml.safe_dump({**content, **bare}), encoding="utf-8")
        keys = [f"text.{section}={file}", "text.stages_in_prompt=false"]
        assert text_section(keys[0])
        if bare:
            assert system_instruction(grammar_of(text_section(*keys))) == "Think."
            continue
        with pytest.raises(UserError, match="give instruction_without_stages beside it"):
            text_section(*keys)


def test_a_resolved_recipe_holds_the_file(tmp_path: Path):
    own = write(tmp_path, stages={"reaction": "yuyachiy"}, questions={"Mood": "Imaynalla?"})
    config = parse_config(MINIMAL, [own], source="test")
    (tmp_path / "words.yaml").unlink()
    again = parse_config(dump_config(config), source="config.yaml")
    assert again == config
    assert again.text.wording.stages == {"reaction": "yuyachiy"}


def test_each_language_has_questions_of_its_own():
    assert built_in_questions(TextConfig()) == {}
    asked = [built_in_questions(TextConfig(language=name))["FIG"] for name in OTHERS]
    assert len({*asked}) == len(OTHERS)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"stagez": {}}, ["unknown key 'stagez'", "'stages'"]),
        ({"instruction": "Think."}, ["instruction", "{form} once", "0 times"]),
        ({"instruction": "{form} {form}"}, ["{form} once", "2 times"]),
        ({"instruction": "{from} {form}"}, ["{stages} and {form}", "{from}"]),
        ({"instruction_without_stages": "Use {form}"}, ["nothing is filled in here", "{form}"]),
        ({"instruction_without_stages": "Use <think>"}, ["instruction_without_stages", "'<'"]),
        ({"traces": {"reaction": ["{post}"]}}, ["traces.reaction.0", "{quote} and {label}"]),
        ({"stages": {"reaction": "<b>"}}, ["stages.reaction", "'<'"]),
        ({"label": " "}, ["label", "expected some text"]),
        ({"spaced": "often"}, ["spaced", "'often'"]),
        ({"stages": {"mood": "low"}}, ["'mood'", "mental_state", "correct the name"]),
    ],
)
def test_a_wrong_wording_is_one_clear_message(
    content: dict[str, object], parts: list[str], tmp_path: Path
):
    with pytest.raises(UserError) as caught:
        text_section(write(tmp_path, **content))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_file_that_is_no_wording_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="not there.*nowhere.yaml"):
        text_section("text.wording=nowhere.yaml")
    file = tmp_path / "words.yaml"
    for content, message in (("a: [", "not YAML"), ("[1]", r"words\.yaml.*dictionary")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=f"(?s){message}"):
            text_section(f"text.wording={file}")
    file.write_bytes(b"label: \xff")
    with pytest.raises(UserError, match="UTF-8"):
        text_section(f"text.wording={file}")


def test_what_is_filled_in_is_not_searched_again():
    stage = GRAMMAR.stages[0].__class__("one", "what", ("{quote} {label}",))
    grammar = Grammar(stages=(stage,))
    completion = template_completion("{label} {quote}", "Yes", random.Random(0), grammar)
    assert completion.startswith("{label} {quote} Yes</one>")
