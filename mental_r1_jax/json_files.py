"""JSON objects in strangers' files: read, or refused with one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mental_r1_jax.errors import UserError

# The largest index of a published model has a few megabytes.
_MAX_BYTES = 64 * 2**20


def read_json_object(file: Path, expected: str = "a JSON object", remedy: str = "") -> Any:
    """Return the object (a dict) in `file`.

    Raises:
        UserError: the file is missing, no plain file, too large, torn, not UTF-8 or no object.
    """
    try:
        return _read(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            what=f"cannot read {file}",
            expected=expected,
            got=str(error),
            remedy=remedy or "download the file again, or mend it",
        ) from error


def _read(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():  # reading a pipe would wait for ever
        raise ValueError("a folder, pipe or device, not a file")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file.stat().st_size} bytes, more than {_MAX_BYTES}")
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} instead of an object")
    return content
