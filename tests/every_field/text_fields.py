"""The part of the table of all fields that is about `text`: wordings, stages and the prompt."""

from __future__ import annotations

from mental_r1_jax.text.stages import STAGES
from tests.every_field import predictions, probes, verbs
from tests.every_field.data_fields import READERS
from tests.every_field.fields import Field, everywhere

WORDS = "text.wording"
GRAMMAR = "text.grammar"
# The paper's stages, written as a grammar of one's own.
PAPERS = {
    f"{GRAMMAR}.stages": [
        {"name": stage.name, "description": stage.description, "traces": list(stage.traces)}
        for stage in STAGES
    ]
}
# Parts that show the instruction; room for one that a tokenizer of English writes in many tokens.
INSTRUCTED = (probes.asked_prompts, verbs.verified_prompt, verbs.sampled_prompt, probes.exported)
TIGHT = {"rollout.max_prompt_length": 180}
ROOMY = {
    "rollout.max_prompt_length": 1500,
    "rollout.prompt_length_buckets": [400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
    "rollout.max_completion_length": 200,
}
UNTOLD = {"text.stages_in_prompt": False}

TEXT_FIELDS: dict[str, Field | tuple[Field, ...]] = {
    "text.language": everywhere(
        "spanish",
        probes.asked_prompts,
        verbs.verified_prompt,
        verbs.sampled_prompt,
        verbs.evaluated_posts,
        (verbs.reported, TIGHT),
        probes.posts,
        probes.traces,
        probes.encoded_traces,
        probes.exported,
        given=ROOMY,
    ),
    f"{GRAMMAR}.stages": everywhere(
        # As many stages as the paper's, so that no other key must change with them.
        [{"name": name, "description": "more", "traces": ["{quote}"]} for name in "abcde"],
        *INSTRUCTED,
        probes.traces,
        (probes.encoded_traces, ROOMY),
        probes.reward,
        probes.stage_metrics,
        predictions.evaluated,
    ),
    f"{GRAMMAR}.instruction": everywhere("Think. {form}", *INSTRUCTED, given=PAPERS),
    f"{GRAMMAR}.think_tag": everywhere("thought", *INSTRUCTED, probes.reward, given=PAPERS),
    f"{GRAMMAR}.answer_tag": everywhere(
        "label", *INSTRUCTED, probes.reward, probes.traces, given=PAPERS
    ),
    f"{GRAMMAR}.instruction_without_stages": everywhere(
        "Think.", *INSTRUCTED, given={**PAPERS, **UNTOLD}
    ),
    f"{WORDS}.instruction_without_stages": everywhere("Think.", *INSTRUCTED, given=UNTOLD),
    "text.stages_in_prompt": everywhere(False, *INSTRUCTED, probes.encoded_traces),
    f"{WORDS}.code": Field("de", probes.exported),
    f"{WORDS}.instruction": everywhere("Think. {form}", *INSTRUCTED),
    f"{WORDS}.label": everywhere("WORD", *INSTRUCTED),
    f"{WORDS}.stages": everywhere({"reaction": "how it feels"}, *INSTRUCTED),
    f"{WORDS}.choose": everywhere("Choose:", *READERS, probes.exported),
    f"{WORDS}.statement": everywhere("Post: ", *READERS, probes.exported),
    f"{WORDS}.questions": everywhere({"Calm": "At ease?"}, *READERS, probes.exported),
    f"{WORDS}.traces": Field({"reaction": ["calm"]}, probes.traces),
    f"{WORDS}.spaced": Field(False, probes.traces),
    f"{WORDS}.nothing": Field("no word", probes.wordless_trace),
}
