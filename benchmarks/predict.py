"""Rows a second and memory of `mental-r1 predict`, beside `generate` of transformers.

    python benchmarks/predict.py --posts 10000 --common 1000 --rounds 2 --json OUT

Both answer the same made-up posts greedily with the same model in float32, in batches of the same
size that hold posts of like length, in turns (A B A B); `predict` also without running once what
all prompts begin with. The rate counts from the first finished batch on, so that neither loading
nor most of compiling is in it; the whole command is told as well. A random model hardly ever ends
an answer, so all write `--tokens` tokens for every post. Told is also how many posts have the same
tokens as an answer. At the end `predict` alone answers all `--posts`, and its memory is told as the
work goes on; `--posts 0` leaves that out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
WORDS = (
    "the week was long and i could not sleep because work kept me awake again my friend called "
    "and we had tea but i felt tired and far away most days i walk home alone and think of it"
).split()
SET = "Stress-Synthetic"
# What is measured.
PREDICT, UNSHARED = "predict", "predict, nothing shared"
TRANSFORMERS = "transformers `generate`"


def write_posts(path: Path, count: int) -> None:
    """Made-up posts of 5 to 120 words."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for n in range(count):
            writer.writerow([n, " ".join(draw.choices(WORDS, k=draw.randint(5, 120)))])


def make_model(folder: Path) -> None:
    """A random model of the quickstart's size."""
    from mental_r1_jax.models.tiny import make_tiny_model
    from mental_r1_jax.text.prompts import system_instruction

    make_tiny_model(folder, [system_instruction(), " ".join(WORDS)] * 3)


def keys(options: argparse.Namespace) -> list[str]:
    """What both are told about lengths and batches."""
    return [
        f"rollout.max_prompt_length={options.prompt}",
        f"rollout.max_completion_length={options.tokens}",
        f"rollout.first_cache_length={options.tokens}",
        f"evaluate.batch_size={options.batch}",
        "model.compute_dtype=float32",
        "run.compilation_cache=null",
    ]


def resident_bytes(pid: int) -> int:
    """Memory of a process now; 0 when it has gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def watch(command: Sequence[str], progress: Path, rows: int) -> dict[str, Any]:
    """Run a command that appends a line a batch to `progress`; its rate and memory."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, int, int]] = []  # seconds, batches, resident bytes
    file, batches, ended = None, 0, (0, 0, None)
    while ended[0] == 0:
        ended = os.wait4(process.pid, os.WNOHANG)
        if file is None and progress.exists():
            file = progress.open("rb")
        if file is not None and (new := file.read().count(b"\n")):
            batches += new
            seen.append((time.perf_counter() - started, batches, resident_bytes(process.pid)))
        time.sleep(0.01)
    if ended[1] != 0:
        sys.exit(f"failed: {' '.join(command)}")
    whole = time.perf_counter() - started
    # A toy may be done between two looks; then the whole command counts.
    (first, done, _), (last, total, _) = seen[0] if len(seen) > 1 else (0.0, 0, 0), seen[-1]
    quarters = [next(r for _, b, r in seen if b >= total * q / 4) for q in (1, 2, 3)]
    usage: Any = ended[2]
    return {
        "rows": rows,
        "batches": total,
        "rows_per_second": rows * (total - done) / total / (last - first),
        "whole_seconds": whole,
        # The kernel brings its maximum up to date a little late.
        "peak_bytes": max(usage.ru_maxrss * 1024, *(held for _, _, held in seen)),
        "bytes_at_quarters": quarters,
    }


def predict_command(options: argparse.Namespace, posts: Path, output: Path) -> list[str]:
    """Arguments of `mental-r1` that answer `posts`."""
    named = ["predict", str(options.model), str(posts), str(output), "--set", SET]
    return [*named, *keys(options)]


def ours(options: argparse.Namespace, posts: Path, folder: Path, *, shared: bool) -> dict[str, Any]:
    """`mental-r1 predict`, watched, with its tokens."""
    name = f"ours-{time.monotonic_ns()}"
    output, tokens = folder / f"{name}.jsonl", folder / f"{name}.tokens"
    command = [sys.executable, __file__, "--answers", str(tokens)]
    command += [] if shared else ["--unshared"]
    command += ["--ours", json.dumps(predict_command(options, posts, output))]
    progress = output.with_name(output.name + ".unfinished") / "answers.jsonl"
    return watch(command, progress, options.common) | {"answers": answers_of(tokens)}


def theirs(options: argparse.Namespace, posts: Path, folder: Path) -> dict[str, Any]:
    """`generate` of transformers, watched, with its tokens."""
    progress = folder / f"theirs-{time.monotonic_ns()}"
    tokens = progress.with_suffix(".tokens")
    command = [sys.executable, __file__, "--model", str(options.model), "--generate", str(posts)]
    command += ["--progress", str(progress), "--answers", str(tokens)]
    command += ["--prompt", str(options.prompt)]
    command += ["--tokens", str(options.tokens), "--batch", str(options.batch)]
    return watch(command, progress, options.common) | {"answers": answers_of(tokens)}


def answers_of(file: Path) -> dict[str, list[int]]:
    """Row -> tokens of its answer, the end included."""
    answers: dict[str, list[int]] = json.loads(file.read_text(encoding="ascii"))
    return answers


def predict(options: argparse.Namespace) -> None:
    """Run the command line of `--ours`, and write the tokens of its answers."""
    import numpy as np

    from mental_r1_jax.cli import main as command_line
    from mental_r1_jax.prediction import bulk, prompt_shape

    ask, asked = bulk.ask, []

    def keep(predictor: Any, params: Any, prompts: Any, rows: Any, shape: Any) -> Any:
        completions = ask(predictor, params, prompts, rows, shape)
        asked.append((rows, completions.completion_ids, completions.completion_mask))
        return completions

    bulk.ask = keep
    if options.unshared:
        prompt_shape.shared_length = lambda prompts: 0
    status = command_line(json.loads(options.ours))
    answers = {
        row: ids[0][real[0]].tolist()
        for rows, *arrays in asked
        for row, ids, real in zip(rows, *map(np.asarray, arrays), strict=True)
    }
    Path(options.answers).write_text(json.dumps(answers), encoding="ascii")
    sys.exit(status)


def generate(options: argparse.Namespace) -> None:
    """Answer the posts with transformers, the shortest prompts first; a line a batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from mental_r1_jax.data.benchmarks import spec_for
    from mental_r1_jax.data.unlabelled import PostsFile
    from mental_r1_jax.text.prompts import render_prompt
    from mental_r1_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    question = spec_for(SET).question or ""
    prompts = [
        (post.row, list(render_prompt(tokenizer, question, post.text, options.prompt).ids))
        for post in PostsFile(Path(options.generate), "text").posts()
    ]
    prompts.sort(key=lambda prompt: len(prompt[1]))
    found: dict[int, list[int]] = {}
    with Path(options.progress).open("w", encoding="ascii") as progress, torch.inference_mode():
        for start in range(0, len(prompts), options.batch):
            rows, batch = zip(*prompts[start : start + options.batch], strict=True)
            width = max(map(len, batch))
            ids = [[tokenizer.pad_id] * (width - len(one)) + one for one in batch]
            mask = [[0] * (width - len(one)) + [1] * len(one) for one in batch]
            answers = model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=options.tokens,
                do_sample=False,
                eos_token_id=list(tokenizer.eos_ids),
                pad_token_id=tokenizer.pad_id,
            )
            answers = answers[:, width:]
            assert len(tokenizer.hf.batch_decode(answers)) == len(batch)  # as `predict` does
            ended = (cut_at_end(ids, tokenizer.eos_ids) for ids in answers.tolist())
            found |= zip(rows, ended, strict=True)
            progress.write("done\n")
            progress.flush()
    Path(options.answers).write_text(json.dumps(found), encoding="ascii")


def cut_at_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer up to the first token that ends it."""
    end = next((place for place, one in enumerate(ids) if one in eos_ids), len(ids))
    return ids[: end + 1]


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All on the common posts, in turns, then ours on all."""
    common, everything = folder / "common.csv", folder / "posts.csv"
    write_posts(common, options.common)
    write_posts(everything, options.posts)
    if options.model is None:
        options.model = folder / "model"
        make_model(options.model)
    runs: dict[str, list[dict[str, Any]]] = {PREDICT: [], UNSHARED: [], TRANSFORMERS: []}
    for _ in range(options.rounds):
        runs[PREDICT].append(ours(options, common, folder, shared=True))
        runs[UNSHARED].append(ours(options, common, folder, shared=False))
        runs[TRANSFORMERS].append(theirs(options, common, folder))
    answers = {name: [run.pop("answers") for run in of][0] for name, of in runs.items()}
    rates = {k: statistics.median(r["rows_per_second"] for r in v) for k, v in runs.items()}
    whole = {k: statistics.median(r["whole_seconds"] for r in v) for k, v in runs.items()}
    report = {
        "runs": runs,
        "ratio_of_rates": rates[PREDICT] / rates[TRANSFORMERS],
        "ratio_of_whole": whole[TRANSFORMERS] / whole[PREDICT],
        "same_answers": {
            name: sum(found[row] == tokens for row, tokens in answers[PREDICT].items())
            for name, found in answers.items()
            if name != PREDICT
        },
    }
    if options.posts:
        output = folder / "all.jsonl"
        command = [sys.executable, "-m", "mental_r1_jax"]
        command += predict_command(options, everything, output)
        progress = output.with_name(output.name + ".unfinished") / "answers.jsonl"
        report["all"] = watch(command, progress, options.posts)
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["| | rows | rows/s | whole command (s) | peak MiB | MiB at 1/4, 1/2, 3/4 |"]
    lines += ["|---|---|---|---|---|---|"]
    named = [(name, run) for name, runs in report["runs"].items() for run in runs]
    named += [("predict, all posts", report["all"])] if "all" in report else []
    for name, run in named:
        quarters = ", ".join(f"{value / MIB:.0f}" for value in run["bytes_at_quarters"])
        lines.append(
            f"| {name} | {run['rows']:,} | {run['rows_per_second']:.1f} "
            f"| {run['whole_seconds']:.1f} | {run['peak_bytes'] / MIB:.0f} | {quarters} |"
        )
    ratio, whole = report["ratio_of_rates"], report["ratio_of_whole"]
    lines += ["", f"rows/s: {ratio:.2f} times transformers; whole command: {whole:.2f} times"]
    for name, same in report["same_answers"].items():
        lines.append(f"answers of the same tokens as those of {name}: {same:,}")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder; otherwise a random one")
    parser.add_argument("--posts", type=int, default=10_000)
    parser.add_argument("--common", type=int, default=1000, help="posts that both answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="longest prompt, tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the report here, too")
    parser.add_argument("--generate", help="for the program itself: answer these posts")
    parser.add_argument("--progress", help="for the program itself")
    parser.add_argument("--ours", help="for the program itself: run this command line")
    parser.add_argument("--unshared", action="store_true", help="for the program itself")
    parser.add_argument("--answers", help="for the program itself: write tokens here")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.generate or options.ours:
        generate(options) if options.generate else predict(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = compare(options, Path(folder))
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
