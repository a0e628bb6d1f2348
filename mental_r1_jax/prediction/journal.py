"""What a prediction in bulk has done so far, so that a killed one goes on without losing a row.

Beside OUTPUT stands `OUTPUT.unfinished/` (mode 0700) until OUTPUT is written:

1. `manifest.json` says what is being answered, and how: a command that asks for anything else must
   not go on here.
2. `answers.jsonl` gets a line a batch, in the order of the batches, each with a checksum. So its
   sound lines are always a beginning of the work, and their number says where to go on.

At the end OUTPUT appears whole, and `OUTPUT.manifest.json` stays beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mental_r1_jax.errors import UserError
from mental_r1_jax.json_files import read_json_object
from mental_r1_jax.private_files import make_private_folder, write_private

MANIFEST_FILE, ANSWERS_FILE, STAGED_FILE = "manifest.json", "answers.jsonl", "finished.tmp"
_OURS = (ANSWERS_FILE, STAGED_FILE, MANIFEST_FILE, f"{MANIFEST_FILE}.tmp")
_DIGEST_CHARS = 16

Record = dict[str, Any]


def unfinished_folder(output: Path) -> Path:
    """Where the work on `output` is kept until it is done."""
    return output.with_name(output.name + ".unfinished")


def manifest_of(output: Path) -> Path:
    """The file that says what a finished `output` answers."""
    return output.with_name(f"{output.name}.{MANIFEST_FILE}")


def check_facts(output: Path, facts: Mapping[str, Any]) -> bool:
    """Whether `output` is finished and answers to `facts`; nothing is touched.

    Args:
        output: the file to write.
        facts: what the answers depend on, or some of it, by name.

    Raises:
        UserError: `output`, or the unfinished work on it, belongs to something else.
    """
    folder, manifest = unfinished_folder(output), manifest_of(output)
    if os.path.lexists(output):
        if not (output.is_file() and manifest.is_file()):
            raise _foreign(output, f"{output} is there", "no manifest of ours beside it")
        found = read_json_object(manifest)
        _compare(output, f"{output} is there", found.get("facts"), facts)
        if found.get("output_sha256") != _sha256(output):
            raise _foreign(output, f"{output} is there", "another content than was written")
        return True
    if (folder / MANIFEST_FILE).is_file():
        found = read_json_object(folder / MANIFEST_FILE)
        _compare(output, f"unfinished work in {folder} is there", found.get("facts"), facts)
    elif folder.exists() and (not folder.is_dir() or (folder / ANSWERS_FILE).exists()):
        raise _foreign(output, f"{folder} is there", "no manifest of ours in it")
    return False


def begin(output: Path, facts: Mapping[str, Any]) -> Path:
    """Make the folder of unfinished work on `output`, or find it; returns the file of answers."""
    folder = unfinished_folder(output)
    make_private_folder(folder)
    if not (folder / MANIFEST_FILE).is_file():
        write_private(folder / MANIFEST_FILE, _json_bytes({"facts": dict(facts)}))
    return folder / ANSWERS_FILE


def end(output: Path, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Put the finished `STAGED_FILE` in the place of `output`, which is not there.

    Args:
        output: where it belongs.
        facts: what the answers depend on.
        summary: what the manifest also tells.
    """
    staged = unfinished_folder(output) / STAGED_FILE
    done = {"facts": dict(facts), "output_sha256": _sha256(staged), "summary": dict(summary)}
    write_private(manifest_of(output), _json_bytes(done))
    os.replace(staged, output)
    _sync_folder(output.parent)


def remove_unfinished(output: Path) -> None:
    """Remove what `begin` and the work have left, and nothing else."""
    folder = unfinished_folder(output)
    if not folder.is_dir():
        return
    # A process that was killed while it raised the number in its lock leaves a `run.lock.TOKEN`.
    for path in (*(folder / name for name in _OURS), *folder.glob("run.lock.*")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


class Journal:
    """The lines of `answers.jsonl`, one a batch; a context manager that holds the file open."""

    def __init__(self, path: Path) -> None:
        """Count the sound lines at `path` and cut off what follows them."""
        self.path = path
        self.batches, self.rows, size = 0, 0, 0
        for records, end_of_line in _sound_lines(path):
            self.batches += 1
            self.rows += len(records)
            size = end_of_line
        # Private from the start, and only ever appended to.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        surplus = os.fstat(self._file).st_size - size
        if surplus:
            what = f"warning: {surplus} bytes at the end of {path} are not whole; done again"
            print(what, file=sys.stderr, flush=True)
            os.ftruncate(self._file, size)

    def __enter__(self) -> Journal:
        """Nothing further."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, records: Sequence[Record]) -> None:
        """Write the records of the next batch; on the disk when this returns."""
        body = _json_bytes(list(records))
        line = _digest(body) + b" " + body + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self.batches += 1
        self.rows += len(records)

    def in_order(self) -> Iterator[Record]:
        """Yield all records by their row; as many are held as are out of order.

        Raises:
            UserError: the file has lost or changed lines since it was opened.
        """
        waiting: dict[int, Record] = {}
        due = 0
        for records, _ in _sound_lines(self.path):
            waiting |= {record["row"]: record for record in records}
            while due in waiting:
                yield waiting.pop(due)
                due += 1
        if waiting or due != self.rows:
            raise UserError(
                what=f"{self.path} was changed by something else",
                expected=f"rows 0 to {self.rows - 1}, each once",
                got=f"{due} of them in a row",
                remedy="give the same command again; what is sound is kept",
            )


def _sound_lines(path: Path) -> Iterator[tuple[list[Record], int]]:
    """Records of each line up to the first that is not whole, and where the line ends, in bytes."""
    if not path.exists():
        return
    end_of_line = 0
    with path.open("rb") as file:
        for line in file:
            digest, _, body = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or digest != _digest(body):
                return
            end_of_line += len(line)
            yield json.loads(body), end_of_line


def _compare(output: Path, what: str, found: Any, facts: Mapping[str, Any]) -> None:
    """Refuse to go on where the facts are others."""
    known = found if isinstance(found, dict) else {}
    other = [name for name, value in facts.items() if name not in known or known[name] != value]
    if other:
        raise _foreign(output, what, f"answers that differ in: {', '.join(other)}")


def _foreign(output: Path, what: str, got: str) -> UserError:
    return UserError(
        what=f"{what} and belongs to something else",
        expected="a new path, or the output of this very command",
        got=got,
        remedy=f"choose another output, or remove {output}, or {unfinished_folder(output)}; "
        "nothing was touched",
    )


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_DIGEST_CHARS].encode("ascii")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make sure that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
