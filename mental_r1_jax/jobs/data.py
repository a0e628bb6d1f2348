"""`mental-r1 data`: check every row of every set, build the sets, show what is in them.

1. Check all sets of the recipe; print every warning and every error.
2. With any error, or a question that leaves no room for a post: stop here, nothing is built.
3. Build the TFDS sets; of large sets another process counts the tokens at the same time.
4. Print sets, splits, label counts, lengths in tokens, and how many posts will be truncated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mental_r1_jax.config import DataConfig, ExperimentConfig
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.data.benchmarks import SPLITS, BenchmarkSpec
from mental_r1_jax.data.guessing import guess_lines
from mental_r1_jax.data.loading import check_sets, csv_root, set_spec, tfds_folder
from mental_r1_jax.data.questions import in_words
from mental_r1_jax.data.records import CheckedSet, Problem
from mental_r1_jax.data.set_files import set_files
from mental_r1_jax.data.tfds_builder import build_set
from mental_r1_jax.errors import UserError
from mental_r1_jax.private_files import write_private
from mental_r1_jax.text.token_counts import PERCENTILES, Asked, TokenLengths, token_counter
from mental_r1_jax.text.wording import grammar_of

# Warnings about single posts, of which a set may have thousands.
_MANY = ("repeated in split", "repeated across splits", "absurd length", "row inside a text")
# Below it, a process costs more than it saves: its start takes about two seconds.
_LARGE_BYTES = 4_000_000


def run(config: ExperimentConfig | Path, guess: bool = False) -> int:
    """Run the verb; return the exit status.

    Args:
        config: the recipe; with `guess` a file of posts.
        guess: print the lines of a recipe that read the file, and do nothing else.

    Raises:
        UserError: any set has an error, or the file has; all have been printed.
    """
    if isinstance(config, Path):
        assert guess  # a recipe is not a path here
        return _print_guess(config)
    console = open_console()
    with token_counter(config.model.path, apart=_are_large(config.data)) as count:
        checked = check_sets(config.data)
        _print_problems(console, "warning", [p for c in checked.values() for p in c.warnings])
        _stop_on_errors(console, checked)
        limit = config.rollout.max_prompt_length
        answers = count(
            Asked(_questions_and_texts(config, checked), limit, grammar_of(config.text))
        )
        if reason := next(answers):
            lacks = f"model.path={config.model.path!r} gives no tokenizer: {reason}"
            _print_line(console, f"No token counts, for {lacks}")
        tfds_dir = tfds_folder(config.data)
        for one in checked.values():
            build_set(one, tfds_dir)
        with console.status("Counting tokens"):
            measured = next(answers)
    for one in checked.values():
        _list_rows(console, tfds_dir / f"{one.spec.name}-warnings.txt", one.warnings)
    console.print(_table(checked, measured, limit))
    _print_line(console, f"Built {len(checked)} sets in {tfds_dir}")
    return 0


def _print_guess(file: Path) -> int:
    """Print the lines of a recipe that read `file`, as reading it with them has shown."""
    console = open_console()
    guessed = guess_lines(file)
    _print_line(console, guessed.lines)
    _print_line(console, f"# {guessed.rows} posts of {file} were read with these lines")
    if guessed.problems:
        _print_problems(console, "error", guessed.problems)
        raise UserError(
            f"{len(guessed.problems)} problems in {file}",
            "rows that these lines can read",
            ", ".join(sorted({problem.kind for problem in guessed.problems})),
            "Mend the rows listed above, or change the lines.",
        )
    return 0


def _questions_and_texts(
    config: ExperimentConfig, checked: Mapping[str, CheckedSet]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(set, split) -> its posts, asked in the words of the recipe."""
    return {
        (name, split): [
            (post.question, post.text) for post in in_words(config, one.spec, one.examples[split])
        ]
        for name, one in checked.items()
        for split in SPLITS
    }


def _are_large(config: DataConfig) -> bool:
    """Whether the files of the recipe's sets are so large that a process for tokens pays."""
    root = csv_root(config)
    files = [file for name in config.sets for file in set_files(root, set_spec(config, name))]
    return sum(file.stat().st_size for file in files) >= _LARGE_BYTES


def _stop_on_errors(console: Console, checked: Mapping[str, CheckedSet]) -> None:
    """Print all errors and raise if there are any."""
    errors = [problem for one in checked.values() for problem in one.errors]
    if not errors:
        return
    _print_problems(console, "error", errors)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in errors).items())
    bad = [name for name, one in checked.items() if one.errors]
    raise UserError(
        f"{len(errors)} errors in {', '.join(bad)}; nothing was built",
        "no errors",
        kinds,
        "Mend the lines listed above and run `mental-r1 data` again",
    )


def _print_problems(console: Console, severity: str, problems: Sequence[Problem]) -> None:
    """One line a problem, beginning with FILE:LINE so that editors can jump there.

    Of kinds that real sets have by the thousand, only the first of a file, and how many there are.
    """
    counts = Counter((p.file, p.kind) for p in problems)
    said = set()
    for problem in problems:
        place = problem.file, problem.kind
        if problem.kind in _MANY and counts[place] > 1:
            if place in said:
                continue
            said.add(place)
            _print_line(console, f"{severity}: {problem} ({counts[place]} such posts)")
        else:
            _print_line(console, f"{severity}: {problem}")


def _list_rows(console: Console, file: Path, problems: Sequence[Problem]) -> None:
    """Write the warnings of which only the first was printed, one a line; posts only by hash."""
    lines = [str(problem) for problem in problems if problem.kind in _MANY]
    file.unlink(missing_ok=True)
    if len(lines) > 1:
        write_private(file, "\n".join([*lines, ""]).encode("utf-8", "replace"))
        _print_line(console, f"All {len(lines)} such posts are listed in {file}")


def _print_line(console: Console, line: str) -> None:
    """Print `line` as it is: file contents may look like markup, and lines must stay whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(
    checked: Mapping[str, CheckedSet],
    measured: Mapping[tuple[str, str], TokenLengths],
    limit: int,
) -> Table:
    """The summary: a row for each split of each set."""
    table = Table(title=f"Labelled posts (prompts of at most {limit} tokens)")
    table.add_column("set", overflow="fold")
    table.add_column("split")
    table.add_column("posts", justify="right")
    table.add_column("labels", overflow="fold", ratio=1)
    table.add_column("warnings", justify="right")
    if measured:
        for percentile in PERCENTILES[:-1]:
            table.add_column(f"tokens\np{percentile}", justify="right")
        table.add_column("tokens\nmax", justify="right")
        table.add_column("trun-\ncated", justify="right")
    for name, one in checked.items():
        for split in SPLITS:
            examples = one.examples[split]
            counts = Counter(example.label for example in examples)
            labels = ", ".join(f"{label} {counts[label]}" for label in one.spec.labels)
            warnings = sum(_is_about(problem, split, one.spec) for problem in one.warnings)
            cells = [name, split, str(len(examples)), escape(labels), str(warnings)]
            if measured:
                lengths = measured[name, split]
                cells += [*map(str, lengths.percentiles), str(lengths.truncated)]
            table.add_row(*cells, end_section=split == SPLITS[-1])
    return table


def _is_about(problem: Problem, split: str, spec: BenchmarkSpec) -> bool:
    """Whether `problem` lies in the file of this split."""
    if spec.source is not None and spec.source.files is not None:
        files = spec.source.files
        if files.all is not None:  # of all posts, so it stands in the row of the first split
            return split == SPLITS[0] and problem.file == str(files.all)
        return problem.file == str(getattr(files, split))
    stem = Path(problem.file).name.removesuffix("_clean.csv")
    return stem == split or (split == "validation" and stem in ("val", "dev"))
