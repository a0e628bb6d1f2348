"""`make faults-table`: what becomes of bad inputs: one error, a traceback, a hang or silence.

Bad recipes, posts, start models, paths, files of runs, rewards and checkpoints, from the lists of
the tests in this folder and from every key of a recipe and every field of a model's config. Each is
given to the command line or, where that would compile programs, to the part of it that reads the
input, with the error handling of the command line. Refused is what ends in one message within 20
seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from mental_r1_jax import cli
from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.errors import UserError, mistake_of_surroundings
from mental_r1_jax.evaluation.report import check_report_folder
from mental_r1_jax.models import hf_format
from mental_r1_jax.models.hf_config import decoder_config_from_hf, read_hf_config
from mental_r1_jax.private_files import check_writable
from mental_r1_jax.release.hf_folder import check_target
from mental_r1_jax.runs.run_folder import open_run_folder
from mental_r1_jax.training import checkpoint
from mental_r1_jax.training.damage import sound_steps
from tests.data.folders import MOOD, csv_text, made_up_rows, write_set
from tests.faults import test_checkpoints as checkpoints
from tests.faults import test_foreign_files as foreign
from tests.faults import test_model_folders as models
from tests.faults import test_recipes as recipes
from tests.faults import test_rewards as rewards
from tests.faults import test_run_files as run_files
from tests.faults.runs import make_checkpoints
from tests.faults.test_surroundings import PATHS

LIMIT_SECONDS = 20
FLIPS = 40


class Hang(BaseException):
    """An input took longer than `LIMIT_SECONDS`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad input; `try_it` is given an empty folder, and must refuse."""

    group: str
    name: str
    try_it: Callable[[Path], object]


def outcome(case: Case) -> str:
    """What becomes of a bad input: refused, silent, traceback or hang."""

    def on_alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, on_alarm)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        signal.alarm(LIMIT_SECONDS)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = case.try_it(Path(folder))
        except Hang:
            return "hang"
        except Exception as error:
            mistake = error if isinstance(error, UserError) else mistake_of_surroundings(error)
            if mistake is None:
                return f"traceback: {type(error).__name__}: {str(error)[:200]}"
            return "refused" if 0 < len(str(mistake)) < 20_000 else "no message"
        finally:
            signal.alarm(0)
    message = said.getvalue()
    if status == 2 and message.count("error: ") >= 1 and "Traceback" not in message:
        return "refused"
    return f"silent (status {status!r})"


def keys_of_recipes(model: Any = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    """Every key, as `section.key`."""
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from keys_of_recipes(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def data_command(folder: Path, recipe: str) -> int:
    """Status of `mental-r1 data` with this recipe."""
    file = folder / "recipe.yaml"
    file.write_text(recipe, encoding="utf-8")
    return cli.main(["data", str(file)])


def recipe_with(key: str, value: Any) -> str:
    """The good recipe with one key changed."""
    tree = yaml.safe_load(recipes.GOOD)
    *sections, last = key.split(".")
    where = tree
    for section in sections:
        where = where.setdefault(section, {})
    where[last] = value
    return yaml.safe_dump(tree)


def of_recipes() -> Iterator[Case]:
    """Every key with a value of no type it could have, and misspelt; costly and broken texts."""
    for key in keys_of_recipes():
        for kind, name, value in (
            ("a mapping as its value", key, {"a": {"b": 1}}),
            ("misspelt", f"{key}x", 1),
        ):
            text = recipe_with(name, value)
            yield Case("recipes", f"{key} {kind}", lambda f, t=text: data_command(f, t))
    for name, text in recipes.COSTLY.items():
        yield Case("recipes", name, lambda f, t=text: data_command(f, t))


def of_posts() -> Iterator[Case]:
    """Files that are no CSV, and CSV with every kind of mistake, through `mental-r1 data`."""
    rows = made_up_rows("train", 6)
    files = {name: payload for name, (payload, *_) in foreign.FOREIGN.items()}
    files |= {
        f"label {label!r}": csv_text([*rows, ("tea", label, "Q")])
        for label in ("calm", "Calm ", "Cal\u200bm", "", "Clam", "Calm\u00a0", "1", "[3\u20134]")
    }
    files |= {
        f"header {header}": csv_text(rows, header)
        for header in (
            *(("text", "x", "mental_prompt"), ("x", "label", "mental_prompt")),
            *(("text", "text", "label"), ("", "", "")),
        )
    }
    good = csv_text(rows)
    files |= {
        "empty": "",
        "header alone": "text,label,mental_prompt\n",
        "lost quote": good + 'tea,"Calm,Q\n',
        "a field too many": good + "tea,Calm,Q,more\n",
        "a field missing": good + "tea,Calm\n",
        "not UTF-8": good.encode() + b"caf\xe9,Calm,Q\n",
        "an empty post": good + ",Calm,Q\n",
        "a blank post": good + '" ",Calm,Q\n',
    }
    for name, content in files.items():
        for split in ("train", "test"):

            def command(folder: Path, content: Any = content, split: str = split) -> int:
                write_set(folder / "csv", {split: content})
                labels = json.dumps(list(MOOD.labels))
                return data_command(
                    folder,
                    f"model: {{path: m}}\nrun: {{output_dir: {folder}/run, num_steps: 1}}\n"
                    f"data: {{root: {folder}/csv, tfds_dir: {folder}/tfds, sets: [Mood], "
                    f"custom_sets: {{Mood: {{labels: {labels}}}}}}}\n",
                )

            yield Case("posts", f"{split}: {name}", command)


def model_in(folder: Path) -> Path:
    """A sound model of two layers."""
    (folder / "config.json").write_text(json.dumps(models.LLAMA), encoding="utf-8")
    hf_format.save_params(models.weights(models.UNTIED, 0), models.UNTIED, folder, dtype="float32")
    return folder


def of_models() -> Iterator[Case]:
    """Broken configs, indexes and weights of start models."""
    wrong = (None, "x", -1, 0, 1.5, [], {}, True, 10**30, "64")
    fields = [name for name, value in models.LLAMA.items() if isinstance(value, int)]
    pairs = [(f, v) for f in fields for v in wrong if (f, v) != ("num_key_value_heads", None)]
    pairs += [tuple(pair) for pair in arguments(models.test_a_field_of_another_type_is_named)]
    for field, value in pairs:
        content = {**models.LLAMA, field: value}
        yield Case("models", f"{field} = {value!r}", lambda f, c=content: decoder_config_from_hf(c))
    for payload in arguments(models.test_a_broken_config_is_one_error):

        def config(folder: Path, payload: bytes = payload) -> None:
            (folder / "config.json").write_bytes(payload)
            read_hf_config(folder)

        yield Case("models", f"config {payload[:12]!r}", config)
    for content in models.INDEXES:

        def index(folder: Path, content: Any = content) -> None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / models.INDEX).write_text(text, encoding="utf-8")
            hf_format.load_params(folder, models.UNTIED)

        yield Case("models", f"index {content}", index)
    for name, change in changes_of_weights().items():

        def load(folder: Path, change: Callable[[Path], None] = change) -> None:
            change(model_in(folder) / models.SINGLE)
            hf_format.load_params(folder, models.UNTIED)

        yield Case("models", f"weights: {name}", load)


def arguments(test: Any) -> list[Any]:
    """The values that a test is parametrised with."""
    return list(test.pytestmark[0].args[1])


def changes_of_weights() -> dict[str, Callable[[Path], None]]:
    """Damage to a file of weights."""

    def changed(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
        def apply(file: Path) -> None:
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file)

        return apply

    def put(name: str, value: float) -> Callable[[dict[str, np.ndarray]], Any]:
        return lambda tensors: tensors[name].reshape(-1).__setitem__(3, value)

    found: dict[str, Callable[[Path], None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(load_file(model_in(Path(folder)) / models.SINGLE))
        size = (Path(folder) / models.SINGLE).stat().st_size
    for name in names:
        found[f"NaN in {name}"] = changed(put(name, np.nan))
        found[f"no {name}"] = changed(lambda tensors, name=name: tensors.pop(name))
        found[f"{name} as int8"] = changed(
            lambda tensors, name=name: tensors.update({name: tensors[name].astype(np.int8)})
        )
        found[f"{name} flat"] = changed(
            lambda tensors, name=name: tensors.update({name: tensors[name].reshape(-1)[1:]})
        )
    for share in (0, 4, 8, 40, size // 2, size - 1):
        found[f"cut after {share} bytes"] = lambda file, share=share: file.write_bytes(
            file.read_bytes()[:share]
        )
    return found


def of_paths() -> Iterator[Case]:
    """Impossible paths, as the output of every verb."""
    config = recipes.parse_config(recipes.GOOD, source="recipe.yaml")

    def train(path: Path) -> None:
        with open_run_folder(path, config):
            pass

    def evaluate(path: Path) -> None:
        check_report_folder(path)
        check_writable(path)

    def export(path: Path) -> None:
        check_target(path)
        check_writable(path)

    for verb in (train, evaluate, export):
        for name, make in PATHS.items():
            yield Case("paths", f"{verb.__name__}: {name}", lambda f, v=verb, m=make: v(m(f)))


def of_runs() -> Iterator[Case]:
    """Damaged files of a run, other than checkpoints; rewards that misbehave."""
    for name, content in arguments(run_files.test_a_damaged_file_of_a_run_is_named):

        def read(folder: Path, name: str = name, content: str = content) -> None:
            written = run_files.CONTENTS[content]
            if written is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(written)
            run_files.READERS[name](folder)

        yield Case("runs", f"{name}: {content}", read)
    for name in (*rewards.VALUES, "leave"):
        path = f"tests.faults.test_rewards:{name}"
        yield Case("rewards", name, lambda f, path=path: rewards.score(path))
    for path in ("os:system", "os:getcwd", "no_such_module:x", "os:no_such_name", "os", ":", ""):
        yield Case("rewards", path, lambda f, path=path: rewards.score(path))


def of_checkpoints() -> Iterator[Case]:
    """Damage to the only checkpoint of a run."""
    for name, damage in checkpoints.DAMAGE.items():

        def restore(folder: Path, damage: Callable[[Path], None] = damage) -> None:
            make_checkpoints(folder, {3: 0.5})
            damage(folder / "checkpoints" / "3")
            checkpoint.restore_params(folder, "latest", checkpoints.LIKE)

        yield Case("checkpoints", name, restore)


def controls() -> list[str]:
    """Sound inputs that are refused all the same: with any, the table would mean nothing."""

    def posts(folder: Path) -> int:
        labels = json.dumps(list(MOOD.labels))
        write_set(folder / "csv")
        return data_command(
            folder,
            f"model: {{path: {folder}/none}}\nrun: {{output_dir: {folder}/run, num_steps: 1}}\n"
            f"data: {{root: {folder}/csv, tfds_dir: {folder}/tfds, sets: [Mood], "
            f"custom_sets: {{Mood: {{labels: {labels}}}}}}}\n",
        )

    def model(folder: Path) -> None:
        hf_format.load_params(
            model_in(folder), decoder_config_from_hf(read_hf_config(folder)), None
        )

    def run(folder: Path) -> None:
        with open_run_folder(folder / "run", recipes.parse_config(recipes.GOOD, source="r")):
            check_report_folder(folder / "report")
            check_writable(folder / "report")
            check_target(folder / "hf")
            make_checkpoints(folder / "run", {3: 0.5})
            checkpoint.restore_params(folder / "run", "latest", checkpoints.LIKE)

    def reward(folder: Path) -> None:
        rewards.score("tests.hosts.rewards:vowels")

    sound = {"posts": posts, "model": model, "run": run, "reward": reward}
    outcomes = {name: outcome(Case("sound", name, action)) for name, action in sound.items()}
    return [f"{name}: {what}" for name, what in outcomes.items() if what[:6] != "silent"]


def found_flips() -> int:
    """How many of `FLIPS` flipped bits, in any file that is read, are found."""
    rng, found = np.random.default_rng(7), 0
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoints(Path(folder), {3: 0.5})
        step = Path(folder) / "checkpoints" / "3"
        unread = ("commit_success.txt", "_CHECKPOINT_METADATA")
        files = [file for file in checkpoints.files_of(step) if file.name not in unread]
        for number in range(FLIPS):
            file = files[number % len(files)]
            content = file.read_bytes()
            checkpoints.flip(file, int(rng.integers(8 * len(content))))
            try:
                sound_steps(checkpoint.absolute(step.parent))
            except UserError:
                found += 1
            file.write_bytes(content)
    return found


def main() -> int:
    """Try all, print the table; status 1 where anything but an error of the user came back."""
    groups: dict[str, Counter[str]] = {}
    bad, slowest, started = [], (0.0, ""), time.monotonic()
    for of in (of_recipes, of_posts, of_models, of_paths, of_runs, of_checkpoints):
        for case in of():
            begun = time.monotonic()
            what = outcome(case)
            slowest = max(slowest, (time.monotonic() - begun, case.name))
            groups.setdefault(case.group, Counter())[what.partition(":")[0].partition(" (")[0]] += 1
            if what != "refused":
                bad.append(f"{case.group}, {case.name}: {what}")
    kinds = ("refused", "traceback", "hang", "silent")
    print(f"{'bad inputs':12}" + "".join(f"{kind:>11}" for kind in ("tried", *kinds)))
    for name, counts in groups.items():
        cells = (counts.total(), *(counts[kind] for kind in kinds))
        print(f"{name:12}" + "".join(f"{cell:11d}" for cell in cells))
    total = sum(counts.total() for counts in groups.values())
    cells = (total, *(sum(c[kind] for c in groups.values()) for kind in kinds))
    print(f"{'all':12}" + "".join(f"{cell:11d}" for cell in cells))
    refused = controls()
    print("sound inputs that are refused, too:", ", ".join(refused) or "none")
    flips = found_flips()
    print(f"flipped bits of checkpoints: {flips} of {FLIPS} found")
    print(f"the slowest input took {slowest[0]:.1f} s ({slowest[1]})", end="; ")
    print(f"all together {time.monotonic() - started:.0f} s")
    print("\n".join(bad))
    return 1 if bad or refused or flips < FLIPS else 0


if __name__ == "__main__":
    sys.exit(main())
