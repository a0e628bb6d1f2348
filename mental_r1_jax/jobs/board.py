"""`mental-r1 board`: several runs compared on one page, without a server or a tracker.

1. Read recipe, metrics and test scores of each run; what is damaged is named and left out.
2. Write one self-contained page, and its panels as pictures where asked for. A file that is no
   board is never replaced.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mental_r1_jax.errors import UserError, visible
from mental_r1_jax.evaluation.board_page import (
    MARKER,
    MOST_RUNS,
    BoardRun,
    board_page,
    board_panels,
)
from mental_r1_jax.evaluation.pictures import picture, picture_name
from mental_r1_jax.evaluation.report import METRICS_FILE as SCORES_FILE
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.recipe import parse_yaml
from mental_r1_jax.runs.run_folder import CONFIG_FILE
from mental_r1_jax.training.metrics import METRICS_FILE, read_sound_metrics

# What changes where things lie or how they are shown, and not the run.
_LEFT_OUT = (
    *("run.output_dir", "run.compilation_cache", "run.tensorboard", "run.wandb_project"),
    *("run.trackio_project", "data.tfds_dir", "evaluate.", "export."),
)
# Keys that name a folder, or a model that may be one.
_PLACES = ("model.path", "model.lora.base", "data.root", "sft.traces")
# Whatever else looks like a path is shown like one.
_PATH = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def run(
    runs: Sequence[Path], output: Path = Path("board.html"), pictures: Path | None = None
) -> Path:
    """Write the page that compares `runs` to `output`, and return its path.

    Args:
        runs: their folders.
        output: the page.
        pictures: a folder for each panel as an SVG file, too.

    Raises:
        UserError: one of `runs` is no run folder, or there are too many, or a file is in the way
            that no board has made; nothing is written then.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in runs))
    _check_runs(folders)
    _check_output(output)
    names = run_names(folders)
    shown = _told_apart([_settings(folder) for folder in folders])
    board = []
    for folder, name, (settings, said) in zip(folders, names, shown, strict=True):
        lines, notes = read_sound_metrics(folder / METRICS_FILE)
        tested, more = _tested(folder)
        one = BoardRun(name, lines, settings, tested, (*said, *notes, *more))
        for note in one.notes:
            print(f"{name}: {note}")
        board.append(one)
    files = {output: board_page(board)}
    if pictures is not None:
        files |= {
            pictures / picture_name(panel): picture(panel, MARKER) for panel in board_panels(board)
        }
    for file in files:
        _check_output(file)
    for file, text in files.items():
        _write(file, text)
    print(f"board of {len(board)} run(s): {visible(str(output))}")
    return output


def run_names(folders: Sequence[Path]) -> list[str]:
    """The name of each run's folder; where two are alike with that of the folder above it.

    What is alike even then gets a number. No path is among them.
    """
    names = [visible(folder.name) for folder in folders]
    counts = Counter(names)
    names = [
        visible(f"{folder.parent.name}/{folder.name}") if counts[name] > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]
    counts, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return numbered


def _check_runs(folders: Sequence[Path]) -> None:
    """Refuse what is no run folder, and more runs than can be told apart."""
    if len(folders) > MOST_RUNS:
        raise UserError(
            what="too many runs for one board",
            expected=f"at most {MOST_RUNS}, whose lines can be told apart",
            got=str(len(folders)),
            remedy="make several boards",
        )
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                what="run folder not found",
                expected="the folder of a run of `train` or `sft`",
                got=visible(str(folder)),
                remedy="give the path of a run folder",
            )
        if not _is_run(folder):
            inside = sorted(path.name for path in folder.iterdir() if _is_run(path))
            raise UserError(
                what=f"{visible(str(folder))} is no run folder",
                expected=f"a folder with {CONFIG_FILE} and {METRICS_FILE}",
                got=f"a folder with runs in it: {inside[:8]}" if inside else "neither of them",
                remedy="give the runs one by one",
            )


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or (folder / METRICS_FILE).is_file()


def _check_output(output: Path) -> None:
    """Refuse to replace anything but an earlier board, or a picture of one."""
    if not output.exists() and not output.is_symlink():
        return
    if output.is_file():
        with output.open("rb") as file:
            if MARKER.encode() in file.read(2000):
                return
    raise UserError(
        what=f"{visible(str(output))} exists and is no board",
        expected="a new file, or an earlier board to replace",
        got="a folder" if output.is_dir() else "a file that `mental-r1 board` did not write",
        remedy="choose another --output; nothing was touched",
    )


def _settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The recipe of a run, flat, and what is to be said if it cannot be read.

    It is not validated: a run of another version may have keys that this one does not know.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}, [f"there is no {CONFIG_FILE}"]
    try:
        tree = parse_yaml(file.read_bytes().decode("utf-8"), what=CONFIG_FILE)
    except (UserError, OSError, UnicodeDecodeError):
        return {}, [f"{CONFIG_FILE} cannot be read"]
    if not isinstance(tree, dict):
        return {}, [f"{CONFIG_FILE} holds no recipe"]
    flat = _flat(tree)
    return {key: value for key, value in flat.items() if not key.startswith(_LEFT_OUT)}, []


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _told_apart(
    read: Sequence[tuple[dict[str, Any], list[str]]],
) -> list[tuple[dict[str, str], list[str]]]:
    """Values as text. Of places only the last part of the path, numbered where that is alike."""
    names: dict[str, dict[str, str]] = {}  # last part of a path -> path -> what is shown

    def text(key: str, value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(text(key, one) for one in value)}]"
        if not isinstance(value, str) or not (key in _PLACES or _PATH.match(value)):
            return visible(str(value))
        if _HUB_ID.fullmatch(value):
            return visible(value)
        parts = [part for part in value.replace("\\", "/").split("/") if part]
        last = visible(parts[-1] if parts else value)
        known = names.setdefault(last, {})
        return known.setdefault(value, f"{last} ({len(known) + 1})" if known else last)

    return [
        ({key: text(key, value) for key, value in settings.items()}, notes)
        for settings, notes in read
    ]


def _tested(folder: Path) -> tuple[float | None, list[str]]:
    """Weighted F1 on the test split, and what is to be said if it cannot be read."""
    file = folder / "evaluation" / "test" / SCORES_FILE
    if not file.is_file():
        return None, []
    try:
        score = float(read_json_object(file)["average"]["weighted_f1"])
    except (UserError, KeyError, TypeError, ValueError):
        score = math.nan
    if not 0.0 <= score <= 1.0:
        return None, [f"evaluation/test/{SCORES_FILE} cannot be read"]
    return score, []


def _write(output: Path, text: str) -> None:
    """Write the whole file or nothing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f"{output.name}.partial")
    staging.write_text(text, encoding="utf-8", errors="replace")
    os.replace(staging, output)
