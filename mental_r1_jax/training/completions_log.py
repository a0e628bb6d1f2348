"""Completions of a step on disk and in the console, so that one can read what is rewarded.

A completion may quote the post it answers, so these files are as sensitive as the data themselves
even where the prompt is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from mental_r1_jax.private_files import make_private_folder, write_private

COMPLETIONS_FOLDER = "completions"
REWARD_PREFIX = "rewards/"

# Column -> type; `rewards/<name>` columns (double) follow `reward`. `prompt` may be missing.
COLUMNS = {
    "set_name": pa.string(),
    "row": pa.int64(),
    "prompt": pa.string(),
    "completion": pa.string(),
    "label": pa.string(),
    "answer": pa.string(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "well_formed": pa.bool_(),
    "reason": pa.string(),
    "num_tokens": pa.int64(),
    "finished": pa.bool_(),
}


def write_completions(
    folder: Path, step: int, rows: Sequence[Mapping[str, Any]], *, redact: bool = False
) -> Path:
    """Write `folder/completions/step_NNNNNN.parquet`, atomically; returns its path.

    File and folder can be read by their owner only.

    Args:
        folder: the run folder.
        step: number of the step, from 1; names the file and fills the column `step`.
        rows: one mapping a completion, with the keys of `COLUMNS` and any `rewards/<name>`.
        redact: leave out the prompts (they hold the posts).

    Raises:
        ValueError: no rows, or a row's keys are not those of the others or of `COLUMNS`.
    """
    schema = _schema(rows, redact=redact)
    columns = {"step": pa.array([step] * len(rows), pa.int64())} | {
        field.name: pa.array([_storable(row[field.name]) for row in rows], field.type)
        for field in schema
    }
    path = folder / COMPLETIONS_FOLDER / f"step_{step:06d}.parquet"
    make_private_folder(path.parent)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    write_private(path, buffer.getvalue().to_pybytes())
    return path


def console_table(rows: Sequence[Mapping[str, Any]], limit: int = 300) -> Table:
    """The completion with the highest and the one with the lowest reward, side by side.

    Args:
        rows: one mapping a completion, as in `write_completions`; prompts are never shown.
        limit: characters shown of each completion; a longer one loses its middle.
    """
    table = Table(title="best and worst completion", title_justify="left", show_lines=True)
    table.add_column("")
    best = max(rows, key=lambda row: row["reward"])
    worst = min(rows, key=lambda row: row["reward"])
    shown = {"best": best} if best is worst else {"best": best, "worst": worst}
    for name in shown:
        table.add_column(name, overflow="fold")
    facts = ("set_name", "label", "answer", "reward", "well_formed", "reason", "num_tokens")
    for fact in facts:
        table.add_row(fact, *(Text(_display(row.get(fact))) for row in shown.values()))
    texts = (_shorten(row["completion"], limit) for row in shown.values())
    table.add_row("completion", *(Text(text) for text in texts))
    return table


def _schema(rows: Sequence[Mapping[str, Any]], *, redact: bool) -> pa.Schema:
    if not rows:
        raise ValueError("expected at least one completion to write, got none")
    keys = rows[0].keys()
    for index, row in enumerate(rows):
        if row.keys() != keys:
            differing = sorted(row.keys() ^ keys)
            raise ValueError(f"all rows need the same keys; row {index} differs in {differing}")
    rewards = [key for key in keys if key.startswith(REWARD_PREFIX)]
    missing = sorted(COLUMNS.keys() - keys - {"prompt"})
    unknown = sorted(keys - COLUMNS.keys() - set(rewards))
    if missing or unknown:
        raise ValueError(f"expected the keys of COLUMNS and rewards/<name>: {missing=}, {unknown=}")
    left_out = {"prompt"} if redact or "prompt" not in keys else set()
    fields: list[tuple[str, pa.DataType]] = []
    for name, kind in COLUMNS.items():
        if name not in left_out:
            fields.append((name, kind))
        if name == "reward":
            fields += [(reward, pa.float64()) for reward in rewards]
    return pa.schema(fields)


def _storable(value: Any) -> Any:
    """Broken UTF-8 is kept in completions as lone surrogates, which no file format accepts."""
    return re.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def _display(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(_storable(value))


def _shorten(text: str, limit: int) -> str:
    text = _storable(text)
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]} ... {text[len(text) - (limit - head) :]}"
