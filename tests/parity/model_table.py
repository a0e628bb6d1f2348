"""Print the largest logit difference between transformers and us, for every family and setting.

python -m tests.parity.model_table
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import transformers

from tests.parity.model_cases import CASES, Case, hf_logits, make_hf_model, make_inputs, our_logits


def largest_difference(case: Case, folder: Path) -> tuple[float, float]:
    """Return the largest absolute logit difference and the largest absolute logit."""
    model = make_hf_model(case)
    model.save_pretrained(folder)
    inputs = make_inputs(model.config.vocab_size)
    theirs, ours = hf_logits(model, inputs), our_logits(folder, inputs)
    return float(np.abs(theirs - ours).max()), float(np.abs(theirs).max())


def main() -> None:
    """Print the table in Markdown."""
    transformers.utils.logging.disable_progress_bar()
    print("| family | setting | largest difference | largest logit |")
    print("|---|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            difference, logit = largest_difference(case, Path(folder))
        print(f"| {case.family} | {case.setting} | {difference:.1e} | {logit:.1f} |")


if __name__ == "__main__":
    main()
