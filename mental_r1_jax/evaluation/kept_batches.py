"""Finished batches of an evaluation that is not done, so that an interrupted one can go on.

A batch is kept in the folder of the report, in `unfinished/KEY.json` (mode 0600), until the report
is written. The key is a digest of everything that its predictions depend on: weights, recipe,
prompts and labels. What was kept for other weights or other posts has another name, and is never
found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mental_r1_jax.evaluation.completion_tokens import tokens_from_json, tokens_to_json
from mental_r1_jax.evaluation.metrics import Prediction
from mental_r1_jax.private_files import make_private_folder, write_private

UNFINISHED_FOLDER = "unfinished"
_OURS = re.compile(r"[0-9a-f]{64}\.json(\.tmp)?")
# What is kept of a prediction; the rest is known from its post.
_FIELDS = (
    *("prediction", "well_formed", "truncated", "num_tokens", "answer", "completion"),
    "probabilities",
)


@dataclasses.dataclass(frozen=True)
class KeptBatches:
    """Where finished batches are kept.

    Attributes:
        folder: of the report.
        identity: of weights, recipe and program; the rest of a key is of the batch.
    """

    folder: Path
    identity: str

    def key(self, batch: Iterable[object]) -> str:
        """Name of a batch, from the `repr` of all that it depends on beside `identity`."""
        digest = hashlib.sha256(self.identity.encode())
        for fact in batch:
            digest.update(repr(fact).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def write(self, key: str, predictions: Sequence[Prediction]) -> None:
        """Keep the predictions of one batch, whole or not at all."""
        make_private_folder(self.folder)
        make_private_folder(self.folder / UNFINISHED_FOLDER)
        answers = [
            {name: getattr(one, name) for name in _FIELDS}
            | {"entropies": one.stage_entropies, "tokens": tokens_to_json(one.tokens)}
            for one in predictions
        ]
        body = json.dumps(answers).encode("ascii")
        line = hashlib.sha256(body).hexdigest().encode("ascii")
        write_private(self._file(key), line + b"\n" + body)

    def read(self, key: str, posts: Sequence[Any]) -> list[Prediction] | None:
        """Predictions kept for a batch of these posts, or None where there are none to believe."""
        file = self._file(key)
        if not file.is_file():
            return None
        line, _, body = file.read_bytes().partition(b"\n")
        if line != hashlib.sha256(body).hexdigest().encode("ascii"):
            print(f"warning: {file} is damaged; its batch is done again", file=sys.stderr)
            return None
        return [
            Prediction(
                set_name=post.set_name,
                row=post.row,
                label=post.label,
                text=post.text,
                group=post.group,
                stage_entropies=tuple(answer["entropies"]),
                tokens=tokens_from_json(answer["tokens"]),
                **{name: answer[name] for name in _FIELDS},
            )
            for post, answer in zip(posts, json.loads(body), strict=True)
        ]

    def remove(self) -> None:
        """Remove all that evaluations have kept in the folder, and nothing else."""
        folder = self.folder / UNFINISHED_FOLDER
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()

    def _file(self, key: str) -> Path:
        return self.folder / UNFINISHED_FOLDER / f"{key}.json"
