"""Posts with several labels: a row becomes one yes/no question for each topic of its set."""

from __future__ import annotations

from mental_r1_jax.data.benchmarks import BenchmarkSpec, asked


def topics_in(label: str | tuple[str, ...], spec: BenchmarkSpec) -> tuple[str, ...]:
    """Return the labels of a row, as the set calls its topics; others stay as they are written.

    Args:
        label: a list of labels, or a text in which the set's separator stands between several. An
            empty one says that none of the topics is there.
        spec: a set with topics.
    """
    source = spec.source
    assert source is not None  # only a set of files has topics
    if isinstance(label, str):
        whole = label in source.topics or label in source.label_map
        label = (label,) if whole else tuple(label.split(source.topic_separator))
    named = (one.strip() for one in label)
    return tuple(source.label_map.get(one, one) for one in named if one)


def are_topics(cell: str, spec: BenchmarkSpec) -> bool:
    """Return whether a cell holds topics of the set and nothing else."""
    assert spec.source is not None  # only a set of files has topics
    topics = topics_in(cell, spec)
    return bool(topics) and set(topics) <= set(spec.source.topics)


def answers(topics: tuple[str, ...], spec: BenchmarkSpec) -> list[tuple[str, str]]:
    """Return question and label for each topic of the set: whether a post with `topics` has it."""
    source = spec.source
    assert source is not None  # only a set of files has topics
    (no,) = (label for label in source.labels if label != source.yes)
    return [
        (asked(asks, source.labels), source.yes if topic in topics else no)
        for topic, asks in source.topics.items()
    ]
