"""The recipe's sections `evaluate` and `export`: what is done with a trained model."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import NonNegativeInt, PositiveInt

from mental_r1_jax.section import LocalPath, ModelName, Section


class EvaluateConfig(Section):
    """Task metrics on held-out posts, independent of the reward.

    Attributes:
        model: run folder, HF folder or hub id to evaluate; null means this recipe's own run.
        output_dir: where the report goes; null means `evaluation/SPLIT` inside the run folder.
        split: which split of the sets to read.
        limit_per_set: so many posts of each set, evenly spaced; null means all.
        batch_size: prompts generated at the same time.
        num_votes: 1 decodes greedily; more samples that many completions and takes the majority.
        confidence: whence the probability of an answer comes, for calibration and areas under
            curves: `votes`, its share of `num_votes` samples; `labels`, what the model gives each
            label after its reasoning (one more pass); `none` asks for no probabilities.
        bootstrap_samples: resamples behind the 95% intervals.
        include_text: write posts and completions into `predictions.csv`, and posts into the reading
            room.
        reading_room: right and as many wrong answers of each set whose completions `report.html`
            shows, token by token; 0 shows none. null means 4 with `include_text`, else 0.
    """

    model: ModelName | None = None
    output_dir: LocalPath | None = None
    split: Literal["validation", "test"] = "test"
    limit_per_set: PositiveInt | None = None
    batch_size: PositiveInt = 32
    num_votes: PositiveInt = 1
    confidence: Literal["none", "votes", "labels"] = "none"
    bootstrap_samples: PositiveInt = 1000
    include_text: bool = False
    reading_room: NonNegativeInt | None = None

    @property
    def shown_answers(self) -> int:
        """Right, and as many wrong, answers of each set in the report's reading room."""
        if self.reading_room is None:
            return 4 if self.include_text else 0
        return self.reading_room

    @pydantic.model_validator(mode="after")
    def _votes_are_several(self) -> EvaluateConfig:
        if self.confidence == "votes" and self.num_votes == 1:
            raise ValueError(
                "evaluate.confidence=votes needs several votes, got evaluate.num_votes=1; raise "
                "it, or choose evaluate.confidence=labels"
            )
        return self


class ExportConfig(Section):
    """The Hugging Face folder to release.

    Attributes:
        checkpoint: which one of the run: `best` by validation, `latest`, or a step number.
        output_dir: the folder to write; null means `hf` inside the run folder.
        format: of a run with adapters: `merged` into its weights, or a `peft` folder of their own.
        dtype: dtype of the written weights.
        max_shard_megabytes: size at which a new safetensors file starts.
        gguf: write `model-PRECISION.gguf` for llama.cpp, Ollama and LM Studio as well, as `f16` or
            with 8 bits a weight (`q8_0`); null writes none.
        verify: reload with transformers and compare logits and greedy text (needs torch).
    """

    checkpoint: Literal["best", "latest"] | NonNegativeInt = "best"
    output_dir: LocalPath | None = None
    format: Literal["merged", "peft"] = "merged"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_shard_megabytes: PositiveInt = 4000
    gguf: Literal["f16", "q8_0"] | None = None
    verify: bool = False

    @pydantic.model_validator(mode="after")
    def _gguf_holds_a_whole_model(self) -> ExportConfig:
        if self.gguf is not None and self.format == "peft":
            raise ValueError(
                "export.gguf is a file of the whole model, and export.format=peft writes adapters "
                "only; set export.format=merged"
            )
        return self
