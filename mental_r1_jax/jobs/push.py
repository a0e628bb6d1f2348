"""`mental-r1 push`: an exported folder to the Hugging Face hub, private unless it is said."""

from __future__ import annotations

from pathlib import Path

from mental_r1_jax.release.export_manifest import CARD, read_export
from mental_r1_jax.release.hub import Destination, check_destination, files_to_send, push_files


def run(
    folder: Path,
    hub_id: str,
    *,
    public: bool = False,
    revision: str = "main",
    replace: bool = False,
    no_gguf: bool = False,
    dry_run: bool = False,
) -> None:
    """Compare `folder` with what `export` recorded, and upload it by one commit.

    Args:
        folder: an exported folder.
        hub_id: owner/name.
        public: make a new repository that everybody may read.
        revision: the branch of the repository; made where it is not there.
        replace: consent to replace other content of that branch.
        no_gguf: leave the file for llama.cpp out.
        dry_run: print what would be sent and send nothing; needs no token.
    """
    export = read_export(folder)
    to = Destination(hub_id, public=public, revision=revision, replace=replace)
    check_destination(to, export)
    files = files_to_send(export, gguf=not no_gguf)
    for file in files:
        edited = file.name == CARD and export.card_edited
        print(f"{file.num_bytes:>15,}  {file.name}{' (edited after the export)' if edited else ''}")
    total = f"{len(files)} files, {sum(file.num_bytes for file in files):,} bytes"
    branch = "" if revision == "main" else f", branch {revision}"
    shown = f"{hub_id}{branch} ({'public' if public else 'private'})"
    if dry_run:
        print(f"{total} would go to {shown}; nothing was sent")
        return
    print(f"{total} to {shown}", flush=True)
    address = push_files(files, to, f"Export of mental-r1-jax {export.version}")
    print(f"on the hub: {address} holds every file, compared by its digest")
