"""`mental-r1 sample`: one post in, staged reasoning and answer out."""

from __future__ import annotations

import sys

from rich.text import Text

from mental_r1_jax.config import ExperimentConfig
from mental_r1_jax.console.progress import open_console
from mental_r1_jax.data.loading import worded_spec
from mental_r1_jax.data.records import Example
from mental_r1_jax.errors import UserError
from mental_r1_jax.opening.devices import open_mesh
from mental_r1_jax.opening.model_source import load_weights, open_model
from mental_r1_jax.prediction.predictor import make_predictor, predict
from mental_r1_jax.sharding import batch_shards
from mental_r1_jax.text.tokenizer import printable
from mental_r1_jax.text.wording import grammar_of


def run(config: ExperimentConfig, *, post: str | None, set_name: str | None) -> None:
    """Print the stages and the answer for one post.

    Args:
        config: the recipe; the model is `evaluate.model`, or its own run.
        post: the text to assess; None reads standard input.
        set_name: whose question to ask; None takes the recipe's first set.
    """
    name = set_name or config.data.sets[0]
    if name not in config.data.sets:
        raise UserError(
            what=f"the recipe has no set {name!r}",
            expected=f"one of {', '.join(config.data.sets)}",
            got=name,
            remedy="choose one of them with --set",
        )
    text = (sys.stdin.read() if post is None else post).strip()
    if not text:
        raise UserError(
            what="there is no post",
            expected="a text to assess",
            got="an empty one",
            remedy='give it with --post "..." or on standard input',
        )
    model = open_model(config.evaluate.model or str(config.run.output_dir), config)
    mesh = open_mesh(config, rows={}, model=model.decoder)
    # The smallest batch that the mesh can share out; the post fills all its rows.
    rows = config.evaluate.model_copy(update={"batch_size": batch_shards(mesh)})
    one = config.model_copy(update={"evaluate": rows})
    params = load_weights(model, mesh, which="best")
    spec = worded_spec(config, name)
    if spec.question is None:
        raise UserError(
            what=f"the set {name!r} has no question of its own",
            expected=f"data.custom_sets.{name}.question",
            got="questions only in the mental_prompt column of its files",
            remedy="write the question into the recipe",
        )
    example = Example(name, "test", 0, text, spec.labels[0], spec.question)
    (prediction,) = predict(
        make_predictor(model, one, mesh, "evaluate"), params, [example], {name: spec.labels}
    )
    grammar = grammar_of(config.text)
    parsed = grammar.parse(prediction.completion)
    console = open_console()
    for stage, span, entropy in zip(
        grammar.stages, parsed.stage_spans, prediction.stage_entropies, strict=True
    ):
        content = prediction.completion[slice(*span)].strip() if span else "(missing)"
        nats = f" [{entropy:.2f} nats]" if entropy is not None else ""
        console.print(Text(stage.name + nats, style="bold"))
        console.print(Text("  " + printable(content)))
    console.print(Text("answer", style="bold"))
    console.print(Text(f"  {prediction.prediction or printable(parsed.answer or '(none)')}"))
    for label, share in (prediction.probabilities or {}).items():
        console.print(Text(f"  {label}: {100 * share:.1f}%"))
    if not parsed.well_formed:
        console.print(Text(f"not well formed: {parsed.reason}", style="italic"))
