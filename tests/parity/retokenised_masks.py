"""How often stage masks made by tokenizing the text again differ from masks of the sampled ids.

The reference implementation decodes a completion, finds the stages in the text, encodes the text
again, and reads the masks off the new encoding's offsets. The new ids need not be the sampled ones:
sampling may choose another split of the same text, and then every later mask place is shifted.
This module is that way, written for measuring.

    python -m tests.parity.retokenised_masks MODEL_FOLDER COMPLETIONS.parquet

measures the completions of a run. Its files hold text, not ids, so there the ids are the text's own
encoding, and only what the text itself does to offsets is counted; `retokenised_disagreement` takes
sampled ids where they are at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mental_r1_jax.rollout.collect import stage_mask
from mental_r1_jax.text.stages import GRAMMAR
from mental_r1_jax.text.tokenizer import Tokenizer, byte_spans, load_tokenizer


@dataclass(frozen=True)
class Disagreement:
    """Counts over completions.

    Attributes:
        completions: how many there are.
        other_ids: completions whose text encodes to other ids than the sampled ones.
        other_masks: completions with a different mask in at least one stage.
        tokens: sampled tokens.
        other_tokens: of these, tokens that some stage marks in one way and not in the other.
    """

    completions: int
    other_ids: int
    other_masks: int
    tokens: int
    other_tokens: int


def retokenised_disagreement(
    tokenizer: Tokenizer, completions_ids: Sequence[Sequence[int]]
) -> Disagreement:
    """Compare both ways on completions given as sampled ids (EOS may be among them)."""
    other_ids = other_masks = tokens = other_tokens = 0
    for ids in completions_ids:
        ours, theirs = masks_of_ids(tokenizer, ids), retokenised_masks(tokenizer, ids)
        differs = (ours != theirs).any(axis=0)
        text = tokenizer.hf.decode(list(ids), skip_special_tokens=True)
        plain = [i for i in ids if i not in tokenizer.hf.all_special_ids]
        other_ids += tokenizer.encode(text) != plain
        other_masks += bool(differs.any())
        tokens += len(ids)
        other_tokens += int(differs.sum())
    return Disagreement(len(completions_ids), other_ids, other_masks, tokens, other_tokens)


def masks_of_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> np.ndarray:
    """Stage masks [S, n] from the bytes of the sampled ids: our way."""
    decoded = tokenizer.decode(ids)
    spans = byte_spans(decoded.text, GRAMMAR.parse(decoded.text).stage_spans)
    return stage_mask(decoded.offsets, spans, len(ids))


def retokenised_masks(tokenizer: Tokenizer, ids: Sequence[int]) -> np.ndarray:
    """Stage masks [S, n]: decode, find the stages, encode again, put mask i on sampled id i."""
    text = tokenizer.hf.decode(list(ids), skip_special_tokens=True)
    encoded = tokenizer.hf(text, add_special_tokens=False, return_offsets_mapping=True)
    masks = np.zeros((len(GRAMMAR.stages), len(ids)), bool)
    spans = GRAMMAR.parse(text).stage_spans
    for place, (start, end) in zip(range(len(ids)), encoded["offset_mapping"], strict=False):
        for stage, span in enumerate(spans):
            inside = span is not None and span[0] <= start and end <= span[1]
            masks[stage, place] = inside and end > start
    return masks


def main(model: Path, files: Sequence[Path]) -> None:
    """Print the counts for the completions of a run."""
    tokenizer = load_tokenizer(model)
    texts = [text for file in files for text in pq.read_table(file)["completion"].to_pylist()]
    found = retokenised_disagreement(tokenizer, [tokenizer.encode(text) for text in texts])
    print(f"{found.completions} completions, {found.tokens} tokens")
    for name in ("other_ids", "other_masks"):
        count = getattr(found, name)
        print(f"{name}: {count} completions ({count / max(1, found.completions):.1%})")
    print(f"other_tokens: {found.other_tokens} ({found.other_tokens / max(1, found.tokens):.2%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])
