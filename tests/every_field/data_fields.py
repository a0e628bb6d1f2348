"""The part of the table of all fields that is about `data`: sets, files, splits and labels."""

from __future__ import annotations

from tests.every_field import probes, verbs
from tests.every_field.fields import Field, everywhere

MINE = "data.custom_sets.Calm"
# Parts that read posts and questions: training and validation, cold start, evaluation, export.
READERS = (probes.posts, probes.traces, verbs.evaluated_posts, verbs.verified_prompt)
# Parts that count training posts.
COUNTING = (probes.number_of_steps, probes.steps_of_the_plan)
# A set with a third label, so that one wrong answer may be nearer than another.
DEGREES = {f"{MINE}.labels": ["No", "Yes", "Often"], f"{MINE}.ordered": True}
# The same set as files that the recipe names.
FILES = {
    f"{MINE}.files.{split}": "{shared}/posts/Calm/" + f"{stem}_clean.csv"
    for split, stem in (("train", "train"), ("validation", "val"), ("test", "test"))
}
# One file of the set, which is then split; its label column as a group, and as topics.
ONE_FILE = {f"{MINE}.files.all": "{shared}/posts/Calm/train_clean.csv"}
BY_LABEL = {**ONE_FILE, f"{MINE}.columns.group": "label"}
ASKED = {**ONE_FILE, f"{MINE}.question": None}
YES_AND_NO = {"Yes": "Is the writer calm?", "No": "Is the writer upset?"}

DATA_FIELDS: dict[str, Field | tuple[Field, ...]] = {
    "data.root": everywhere("{shared}/other_posts", *READERS, verbs.reported),
    "data.sets": everywhere(
        ["Glad"], *READERS, *COUNTING, verbs.reported, verbs.sampled_prompt, probes.exported
    ),
    f"{MINE}.labels": everywhere(
        ["Yes", "Never"], probes.set_labels, verbs.reported, verbs.sampled_prompt
    ),
    f"{MINE}.question": everywhere(
        "Is the writer at ease? " + 40 * "Take your time. ",
        *READERS,
        (verbs.reported, {"rollout.max_prompt_length": 200}),
        verbs.sampled_prompt,
        probes.exported,
    ),
    f"{MINE}.asks_for": Field("calmness", probes.exported),
    f"{MINE}.validation_file": everywhere(
        "dev",
        probes.posts,
        verbs.verified_prompt,
        verbs.reported,
        (verbs.evaluated_posts, {"evaluate.split": "validation"}),
    ),
    f"{MINE}.ordered": Field(
        True,
        probes.reward,
        {**DEGREES, f"{MINE}.ordered": False, "rewards.answer_scale": "ordinal"},
    ),
    f"{MINE}.positive_labels": Field(["Yes"], probes.set_labels),
    f"{MINE}.files.train": Field("{shared}/other_posts/Calm/train_clean.csv", probes.posts, FILES),
    f"{MINE}.files.validation": Field(
        "{shared}/other_posts/Calm/val_clean.csv", probes.posts, FILES
    ),
    f"{MINE}.files.test": Field(
        "{shared}/other_posts/Calm/test_clean.csv", verbs.evaluated_posts, FILES
    ),
    f"{MINE}.files.all": Field("{shared}/posts/Calm/train_clean.csv", probes.posts),
    f"{MINE}.split.validation": Field(0.3, probes.posts, ONE_FILE),
    f"{MINE}.split.test": Field(0.3, probes.posts, ONE_FILE),
    f"{MINE}.split.seed": Field(1, probes.posts, ONE_FILE),
    f"{MINE}.whole_groups": Field(False, probes.problems, BY_LABEL),
    f"{MINE}.topics": Field(YES_AND_NO, probes.problems, ASKED),
    f"{MINE}.topic_separator": Field(
        "e", probes.problems, {**ASKED, f"{MINE}.topics": {"Y": "Is it?", "s": "Or?", "No": "So?"}}
    ),
    f"{MINE}.format": Field("tsv", probes.problems, FILES),
    f"{MINE}.layout": Field("imhi", probes.problems, FILES),
    f"{MINE}.columns.text": Field("label", probes.posts, FILES),
    f"{MINE}.columns.label": Field("text", probes.problems, FILES),
    f"{MINE}.columns.question": Field("text", probes.problems, {**FILES, f"{MINE}.question": None}),
    f"{MINE}.columns.group": Field("label", probes.posts, {**FILES, f"{MINE}.whole_groups": False}),
    f"{MINE}.columns.reasoning": Field("text", probes.posts, FILES),
    f"{MINE}.text_columns": Field(["label", "text"], probes.posts, FILES),
    f"{MINE}.label_map": Field({"Yes": "No"}, probes.posts, FILES),
    "data.tfds_dir": everywhere("{tmp}/elsewhere", probes.posts, verbs.reported),
    "data.on_duplicate": everywhere(
        "drop", probes.posts, probes.traces, verbs.reported, probes.exported
    ),
    "data.absurd_post_chars": everywhere(10, probes.problems, verbs.reported),
    "data.limit_per_set": everywhere(3, probes.posts, probes.traces, *COUNTING, probes.exported),
    "data.label_noise": everywhere(1.0, probes.posts, probes.traces, probes.exported),
}
