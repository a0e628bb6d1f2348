"""How does the cost of a step grow with G, P, C, B, the vocabulary and the model?

    python benchmarks/growth.py --out benchmarks/growth [--trl TRL_VENV/bin/python]

From one setting (one prompt of the shape `paper`: a random 5M model, G=8, P=384, C=256) it changes
one size at a time, measures a step of step.py, beside it one of trl_step.py where a Python with TRL
is given, and draws both over the law one expects. The law is the matrix products of a forward pass,
scaled to pass through the common setting: ours runs a prompt once, TRL once a completion.

OUT.json grows by a point at a time: a stopped measurement goes on where it was. A program that does
not fit into `--memory` is a point without a figure. OUT.svg and a table on the screen show it all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from random_model import SMALL, write_shape

FOLDER = Path(__file__).resolve().parent
OURS, TRL = "this project", "TRL"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One step's sizes.

    Attributes:
        prompts: B.
        group: G, completions of a prompt.
        prompt: P, tokens.
        completion: C, tokens.
        vocabulary: V.
        width: D of the model; its feed-forward part and heads grow with it.
        layers: L.
    """

    prompts: int = 1
    group: int = 8
    prompt: int = 384
    completion: int = 256
    vocabulary: int = 8192
    width: int = 256
    layers: int = 4

    @property
    def shape(self) -> dict[str, Any]:
        """The model's sizes as a Hugging Face configuration names them."""
        heads = self.width // 64
        return SMALL | {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": 688 * self.width // 256,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
        }

    @property
    def parameters(self) -> int:
        """Numbers in the matrices of the layers and in the embedding, which is the head, too."""
        return self.layer_numbers + self.width * self.vocabulary

    @property
    def layer_numbers(self) -> int:
        """Numbers in the matrices of all layers."""
        shape = self.shape
        heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
        return self.layers * self.width * (64 * heads + 3 * shape["intermediate_size"])


# What is changed -> (title, the values it takes). One setting is in all of them.
AXES: dict[str, tuple[str, tuple[dict[str, int], ...]]] = {
    "group": ("G, completions of a prompt", tuple({"group": n} for n in (2, 4, 8, 16, 32, 64))),
    "prompt": (
        "P, tokens of a prompt",
        tuple({"prompt": n} for n in (64, 384, 1024, 2048, 4096)),
    ),
    "completion": (
        "C, tokens of a completion",
        tuple({"completion": n} for n in (32, 64, 128, 256, 512, 1024)),
    ),
    "prompts": ("B, prompts of a step", tuple({"prompts": n} for n in (1, 2, 4, 8))),
    "vocabulary": (
        "V, entries of the vocabulary",
        tuple({"vocabulary": n} for n in (1024, 8192, 49_152, 151_936)),
    ),
    "parameters": (
        "numbers in the model's matrices",
        tuple(
            {"width": width, "layers": layers}
            for width, layers in ((128, 2), (256, 4), (384, 8), (512, 12))
        ),
    ),
}


def forward_operations(setting: Setting, prompt_copies: int) -> float:
    """Operations of the matrix products of one forward pass, attention's included.

        2 N_layers B (k P + G C) + 2 N_head B G C + 4 L H h B (k P^2 / 2 + G C (P + C / 2))

    Args:
        setting: B, G, P, C and the model.
        prompt_copies: k, how often a prompt is run: once, or G times.
    """
    b, g, p, c = setting.prompts, setting.group, setting.prompt, setting.completion
    k = prompt_copies
    layers = setting.layer_numbers * (k * p + g * c)
    head = setting.width * setting.vocabulary * g * c
    pairs = k * p * p / 2 + g * c * (p + c / 2)
    return b * (2.0 * layers + 2.0 * head + 4.0 * setting.layers * setting.width * pairs)


def expected(who: str, setting: Setting, common_seconds: float) -> float:
    """Seconds of a step by the law through the common setting."""
    there, here = (
        forward_operations(one, one.group if who == TRL else 1) for one in (Setting(), setting)
    )
    return common_seconds * here / there


def command_of(who: str, setting: Setting, model: Path, options: argparse.Namespace) -> list[str]:
    """What measures this setting."""
    python, script = (options.trl, "trl_step.py") if who == TRL else (sys.executable, "step.py")
    command = [python, str(FOLDER / script), "--model", str(model), "--steps", str(options.steps)]
    for name, value in (
        *(("prompts", setting.prompts), ("group", setting.group)),
        *(("prompt-len", setting.prompt), ("completion-len", setting.completion)),
    ):
        command += [f"--{name}", str(value)]
    return command + (["--micro-batches", str(setting.prompts)] if who == OURS else [])


def measure(who: str, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """One point: seconds of a step and peak memory, or the last line of what went wrong."""
    most = int(options.memory * 2**30)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "model", Path(folder) / "report.json"
        write_shape(setting.shape, model)
        command = [*command_of(who, setting, model, options), "--json", str(file)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            # Not before the program starts: that would fork this process, whose threads are JAX's.
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (most, most))
            errors = process.communicate()[1]
        if process.returncode or not file.is_file():
            said = [line for line in errors.splitlines() if line.strip()]
            return {"failed": said[-1][:200] if said else f"exit status {process.returncode}"}
        report = json.loads(file.read_text(encoding="utf-8"))
    seconds = {name: one["median"] for name, one in report["seconds"].items()}
    return {"seconds": seconds, "peak_bytes": report["peak_memory_bytes"], "load": load}


def key_of(who: str, setting: Setting) -> str:
    """What a point is called in the file of figures."""
    return f"{who} {json.dumps(dataclasses.asdict(setting))}"


def settings_of(axis: str) -> list[Setting]:
    """The settings along an axis, in its order."""
    return [Setting(**change) for change in AXES[axis][1]]


def abscissa(axis: str, setting: Setting) -> int:
    """Where a setting stands on an axis."""
    return int(getattr(setting, axis))


def fill(figures: dict[str, Any], file: Path, options: argparse.Namespace) -> None:
    """Measure what is missing, ours and TRL's of a setting one after the other."""
    settings = dict.fromkeys([Setting(), *(s for axis in options.axes for s in settings_of(axis))])
    for setting in settings:
        for who in (OURS, TRL) if options.trl else (OURS,):
            key = key_of(who, setting)
            if key in figures:
                continue
            figures[key] = measure(who, setting, options)
            file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            print(key, figures[key].get("failed") or figures[key]["seconds"]["step"], flush=True)


def lines_of(axis: str, figures: Mapping[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """Of each program: (place on the axis, seconds measured, seconds of the law)."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for who in (OURS, TRL):
        common = figures.get(key_of(who, Setting()), {}).get("seconds")
        if common is None:
            continue
        for setting in settings_of(axis):
            seconds = figures.get(key_of(who, setting), {}).get("seconds")
            if seconds is not None:
                law = expected(who, setting, common["step"])
                point = (abscissa(axis, setting), seconds["step"], law)
                lines.setdefault(who, []).append(point)
    return lines


def table(figures: Mapping[str, Any], axes: Sequence[str]) -> str:
    """Measured seconds, and how many times those of the law they are."""
    rows = ["| axis | value | program | step (s) | law (s) | times the law |", "|---|" + "--:|" * 5]
    for axis in axes:
        for who, points in lines_of(axis, figures).items():
            rows += [
                f"| {axis} | {at:,} | {who} | {seconds:.2f} | {law:.2f} | {seconds / law:.2f} |"
                for at, seconds, law in points
            ]
    return "\n".join(rows)


def draw(figures: Mapping[str, Any], axes: Sequence[str], file: Path) -> None:
    """One panel an axis, both scales logarithmic; the law is dashed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same figures give the same file.
    pyplot.rcParams.update({"svg.hashsalt": "growth", "font.size": 8})
    rows = -(-len(axes) // 3)
    figure, panels = pyplot.subplots(
        rows, min(3, len(axes)), figsize=(9, 2.6 * rows), squeeze=False
    )
    for panel, axis in zip(panels.flat, axes, strict=False):
        for (who, points), colour in zip(
            lines_of(axis, figures).items(), ("#2f6fde", "#a86a12"), strict=False
        ):
            at, seconds, law = zip(*points, strict=True)
            panel.loglog(at, seconds, "o-", color=colour, markersize=4, label=who)
            panel.loglog(at, law, "--", color=colour, linewidth=1, label=f"{who}: law")
        measured = [abscissa(axis, setting) for setting in settings_of(axis)]
        panel.set_xticks(measured, [short(number) for number in measured])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel(AXES[axis][0])
        panel.set_ylabel("seconds of a step")
    for panel in panels.flat[len(axes) :]:
        panel.set_visible(False)
    panels.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def short(number: int) -> str:
    """A number for an axis: 384, 49k, 5.0M."""
    if number >= 10**6:
        return f"{number / 10**6:.1f}M"
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure how the cost of a step grows.")
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.svg are written")
    parser.add_argument("--trl", help="a Python that has TRL; none: ours alone")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after the first")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB a program may take")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print and draw."""
    options = parse(arguments)
    file = options.out.with_suffix(".json")
    figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    fill(figures, file, options)
    print(table(figures, options.axes))
    draw(figures, options.axes, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
