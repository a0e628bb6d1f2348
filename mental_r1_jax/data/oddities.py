"""What a person should look at in readable posts: control characters, and splits with one label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mental_r1_jax.data.benchmarks import Split
from mental_r1_jax.data.records import Example, Problem
from mental_r1_jax.data.repeats import LocatedExample

# Tab and line ends are what posts are made of.
_CONTROL_KINDS = {
    "NUL": re.compile("\\x00"),
    "escape characters": re.compile("[\\x1b\\x9b]"),
    "other control characters": re.compile(
        "[\\x01-\\x08\\x0b\\x0c\\x0e-\\x1a\\x1c-\\x1f\\x7f-\\x9a\\x9c-\\x9f]"
    ),
}


def control_warnings(found: Sequence[LocatedExample]) -> list[Problem]:
    """Return one warning a file and kind of control character, with the number of posts."""
    warnings = []
    for file in dict.fromkeys(item.file for item in found):
        for kind, pattern in _CONTROL_KINDS.items():
            lines = [x.line for x in found if x.file == file and pattern.search(x.example.text)]
            if lines:
                value = f"{kind} in {len(lines)} posts, here and below"
                warnings.append(
                    Problem(file, lines[0], "text", value, "text only", "control characters")
                )
    return warnings


def single_label_warnings(
    files: Mapping[Split, str], examples: Mapping[Split, Sequence[Example]]
) -> list[Problem]:
    """Return a warning for each split in which all posts have one label.

    Nothing can be learned from such a split, and its scores say nothing.
    """
    only = only_labels({str(split): posts for split, posts in examples.items()})
    return [
        Problem(file, None, "label", f"only posts labelled {only[split]!r}", "several", "one label")
        for split, file in files.items()
        if split in only
    ]


def only_labels(sources: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Return the label of each split, or set, that has posts with no other."""
    only = {name: source[0].label for name, source in sources.items() if len(source)}
    return {
        name: label
        for name, label in only.items()
        if all(example.label == label for example in sources[name])
    }
