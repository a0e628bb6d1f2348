"""Chat templates of strangers that loop, grow, recurse or are none: one error, in bounded time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mental_r1_jax.errors import UserError
from mental_r1_jax.text import template_trial
from mental_r1_jax.text.prompts import render_prompt
from mental_r1_jax.text.template_trial import _is_bounded
from mental_r1_jax.text.tokenizer import wrap_tokenizer
from tests.text.conftest import CHATML, byte_level

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    + CHAT,
    "loops over characters": "{% set t = messages[0]['content'] %}"
    + "".join(f"{{% for c{i} in t %}}" for i in range(6))
    + "{% endfor %}" * 6
    + CHAT,
    "loops over numbers": "{% set n = namespace(x=2) %}{% for a in range(64) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}" + CHAT,
    "memory": "{{ 'a' * 9999999999 }}" + CHAT,
    "memory by a filter": "{{ 'a' | center(9999999999) }}" + CHAT,
    "memory by doubling": "{% set n = namespace(x='aa') %}{% for a in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}" + CHAT,
}
BROKEN: dict[str, Any] = {
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + CHAT,
    "division": "{{ 1 / 0 }}" + CHAT,
    "type": "{{ 'a' + 1 }}" + CHAT,
    "missing": "{{ messages[9]['content'] }}" + CHAT,
    "include": "{% include '/etc/passwd' %}" + CHAT,
    "syntax": "{% for m in messages %}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}" + CHAT,
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHAT,
    "number": 3,
    "no default": {"rag": CHAT},
}


def rendered(template: Any) -> str:
    return render_prompt(wrap_tokenizer(byte_level(template=template)), "Q: ", "rain", 4000).text


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_one_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = template_trial._TRIAL.replace("RLIMIT_CPU, (5, 5)", "RLIMIT_CPU, (1, 1)")
    assert trial != template_trial._TRIAL
    monkeypatch.setattr(template_trial, "_TRIAL", trial)
    started = time.process_time()
    with pytest.raises(UserError, match="does not end"):
        rendered(ENDLESS[name])
    assert time.process_time() - started < 5  # of this process, which only waits


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_error(name: str) -> None:
    with pytest.raises(UserError, match="chat template"):
        rendered(BROKEN[name])


def test_templates_as_models_have_them_still_work() -> None:
    for template in (
        "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s + m['content'] %}"
        "{% endfor %}{{ bos_token }}{{ n.s }}",
        "{%- macro show(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}{{ show(m) }}"
        "{% endfor %}{{ strftime_now('%Y') }}",
        "{% for m in messages %}{% generation %}{{ m.content | trim }} {% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        {"default": CHAT, "rag": "{{ 1 / 0 }}"},
    ):
        assert "rain" in rendered(template)


def test_plain_templates_are_not_tried_and_others_are() -> None:
    assert _is_bounded(CHATML) and _is_bounded(CHAT)
    assert not any(_is_bounded(template) for template in ENDLESS.values())
