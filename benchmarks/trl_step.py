"""The work of step.py by TRL's GRPOTrainer, on CPU or on an NVIDIA GPU, to compare with.

    TRL_VENV/bin/python benchmarks/trl_step.py --model HF_DIR --prompts 4 --group 8 \
        --prompt-len 384 --completion-len 256 --kl-coef 0.01 --steps 8 --json trl.json

It needs an environment of its own with `torch` and `trl`, and nothing of this project. Prompts are
random tokens; completions have exactly the asked length; generation is that of `transformers`. The
report has the keys of step.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def text_of_length(tokenizer: Any, length: int, rng: random.Random) -> str:
    """A text that encodes to exactly `length` tokens."""
    letters = "abcdefg"
    text = " ".join(rng.choice(letters) for _ in range(4 * length))
    while True:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        text = tokenizer.decode(ids)
        again = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(again) == length:
            return text
        text += " " + " ".join(rng.choice(letters) for _ in range(length))


def make_trainer(options: argparse.Namespace, steps: list[float]) -> Any:
    """TRL's trainer with our setting; seconds of each step go to `steps`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Timer(TrainerCallback):
        """Wall seconds of each step, device work included."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps.append(time.perf_counter() - self.start)

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    rng = random.Random(0)
    texts = [text_of_length(tokenizer, options.prompt_len, rng) for _ in range(options.prompts)]
    rows = options.prompts * options.group
    micro = options.rows_at_once or rows
    on_gpu = torch.cuda.is_available()
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not on_gpu,
        bf16=on_gpu and options.dtype == "bfloat16",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        num_generations=options.group,
        max_completion_length=options.completion_len,
        generation_kwargs={"min_new_tokens": options.completion_len},
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=0,
        beta=options.kl_coef,
        gradient_checkpointing=options.checkpointing,
        learning_rate=1e-4,
        max_steps=options.steps + 1,
        logging_steps=1,
        seed=0,
    )

    def share_of_even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    return GRPOTrainer(
        model=model,
        reward_funcs=share_of_even_ids,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts * (options.steps + 1)}),
        processing_class=tokenizer,
        callbacks=[Timer()],
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train for the steps and return the figures."""
    import torch
    import transformers
    import trl

    steps: list[float] = []
    trainer = make_trainer(options, steps)
    before = time.perf_counter() - START
    trainer.train()
    timed = steps[1:]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {
        "setting": {name: str(value) for name, value in vars(options).items()},
        "machine": {
            "device_kind": torch.cuda.get_device_name() if on_gpu else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
        "seconds": {
            "step": {"median": statistics.median(timed), "min": min(timed), "max": max(timed)}
        },
        "first_step_seconds": before + steps[0],
        "peak_memory_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure one GRPO step of TRL.")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=384)
    parser.add_argument("--completion-len", type=int, default=256)
    parser.add_argument("--kl-coef", type=float, default=0.01)
    parser.add_argument("--temperature", type=float, default=0.85)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after the first")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows-at-once", type=int, default=0, help="0: all completions")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    report = measure(options)
    seconds = report["seconds"]["step"]
    print(f"step {seconds['median']:.3f} s median, {seconds['min']:.3f} s min")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
