"""`mental-r1 evaluate A --against B`: two finished evaluations of the same posts, side by side.

Nothing is run: the answers come from the `predictions.csv` of both.
"""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.console.progress import open_console
from mental_r1_jax.evaluation.comparison import check_same_posts, compare, flips
from mental_r1_jax.evaluation.comparison_report import comparison_tables, write_comparison
from mental_r1_jax.evaluation.finished import evaluation_folder, read_evaluation

SAMPLES, SEED = 1000, 0


def run(first: Path, second: Path) -> Path:
    """Write `comparison.json`, `.csv` and `.html` into the folder of the first evaluation.

    Args:
        first: folder of an evaluation, or a run folder that holds one.
        second: the one to compare with, likewise.

    Raises:
        UserError: one is not there, or they are not of the same posts.
    """
    folders = evaluation_folder(first), evaluation_folder(second)
    one, other = map(read_evaluation, folders)
    check_same_posts(one, other)
    document = compare(one, other, samples=SAMPLES, seed=SEED)
    flipped = flips(one, other)
    write_comparison(folders[0], document, flipped, (str(first), str(second)))
    console = open_console()
    for table in comparison_tables(document, flipped):
        console.print(table)
    console.print(f"comparison: {folders[0] / 'comparison.html'}", markup=False)
    return folders[0]
