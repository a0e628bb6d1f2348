"""An exported folder to the Hugging Face hub: one commit, and then a look at what arrived.

Nothing is sent but the files of the export's manifest, and nothing that the repository holds is
replaced, deleted or shown to others without being asked to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mental_r1_jax.errors import UserError
from mental_r1_jax.release.export_manifest import GGUF, ExportedFile, ExportedFolder

# The hub makes this one itself; it says which files are kept outside of git.
_OF_THE_HUB = ".gitattributes"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MAIN = "main"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where to push, and what may happen there.

    Attributes:
        hub_id: owner/name.
        public: anybody may read a repository that is made; otherwise its owner only.
        revision: the branch; it is made where it is not there.
        replace: whether other content of that branch may be replaced.
    """

    hub_id: str
    public: bool = False
    revision: str = _MAIN
    replace: bool = False


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A branch of the repository as it is before the push: its commit, and digests of its files."""

    commit: str
    digests: Mapping[str, str]


def check_destination(to: Destination, export: ExportedFolder) -> None:
    """Refuse an impossible hub id, and adapters that nobody else could put on a base.

    Raises:
        UserError: `hub_id` is not owner/name, or the base is not named by its hub id.
    """
    if not _HUB_ID.fullmatch(to.hub_id) or ".." in to.hub_id or "--" in to.hub_id:
        raise UserError(
            what=f"{to.hub_id!r} is not the id of a model on the hub",
            expected="owner/name, of letters, digits, '-', '_' and '.'",
            got=to.hub_id,
            remedy="name your user or organisation before the slash; nothing was sent",
        )
    if export.base is not None and not _HUB_ID.fullmatch(export.base):
        raise UserError(
            what="the adapters name a base that nobody else has",
            expected="base_model_name_or_path in adapter_config.json to be a hub id, owner/name",
            got="a folder of this machine",
            remedy="write the hub id of the base there; nothing was sent",
        )


def files_to_send(export: ExportedFolder, *, gguf: bool) -> tuple[ExportedFile, ...]:
    """Files of the export, with or without the one for llama.cpp."""
    return tuple(file for file in export.files if gguf or not GGUF.fullmatch(file.name))


def push_files(files: tuple[ExportedFile, ...], to: Destination, message: str) -> str:
    """Make the branch hold `files` and nothing else, by one commit; returns its address.

    A branch that holds just these files stays as it is. What is replaced remains in the history.

    Raises:
        UserError: no token, no permission, no answer; a repository with other content and no
            consent; a public one that is not asked for; or not everything has arrived.
    """
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(
            what="there is no token of the Hugging Face hub",
            expected="one with permission to write, in HF_TOKEN or kept by `hf auth login`",
            got="none",
            remedy="make one at huggingface.co/settings/tokens; nothing was sent",
        )
    api = huggingface_hub.HfApi(token=token)
    with _clear_errors(to, token):
        branch = _open_branch(api, to, files)
        there = branch.digests if branch else {}
        if not _holds_just(there, files):
            left_over = sorted(there.keys() - _names(files))
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                *(CommitOperationDelete(path_in_repo=name) for name in left_over),
                *(CommitOperationAdd(file.name, str(file.path)) for file in files),
            ]
            api.create_commit(
                to.hub_id,
                operations,
                commit_message=message,
                revision=to.revision,
                # Refused by the hub if somebody has pushed in between.
                parent_commit=branch.commit if branch else None,
            )
        arrived = _digests(api, to)
    if not _holds_just(arrived, files):
        missing = [file.name for file in files if not _same(arrived, file)]
        others = sorted(arrived.keys() - _names(files))
        raise UserError(
            what=f"{to.hub_id} does not hold just what was sent",
            expected="every file with the digest that it has here, and no other",
            got=f"not as they are here, or not there: {', '.join(missing) or 'none'}; others: "
            f"{', '.join(others) or 'none'}",
            remedy="look at the repository, at a .gitignore in it first, and push again",
        )
    where = "" if to.revision == _MAIN else f"/tree/{to.revision}"
    return f"{api.endpoint}/{to.hub_id}{where}"


def _open_branch(
    api: huggingface_hub.HfApi, to: Destination, files: tuple[ExportedFile, ...]
) -> _Branch | None:
    """The branch to commit to, made if need be; None in a repository that is new.

    Raises:
        UserError: it holds something else and may not be replaced, or all the world reads it.
    """
    try:
        repository = api.model_info(to.hub_id)
    except RepositoryNotFoundError:
        api.create_repo(to.hub_id, private=not to.public)
        if to.revision != _MAIN:
            api.create_branch(to.hub_id, branch=to.revision)
        return None
    _check_visibility(to, is_private=bool(repository.private))
    try:
        commit = api.model_info(to.hub_id, revision=to.revision).sha
    except RevisionNotFoundError:
        # A new branch begins as a copy of the main one, which stays as it is.
        api.create_branch(to.hub_id, branch=to.revision)
        return _Branch(str(repository.sha), _digests(api, to))
    digests = _digests(api, to)
    if digests and not _holds_just(digests, files) and not to.replace:
        raise UserError(
            what=f"{to.hub_id} holds something else on its branch {to.revision!r}",
            expected="a repository that is new or empty, or holds just this export",
            got=f"{len(digests)} files, {len(digests.keys() - _names(files))} of which are not "
            "part of this export",
            remedy="push to a new branch (--revision NAME), or replace them (--replace); they "
            "remain in the history; nothing was sent",
        )
    return _Branch(str(commit), digests)


def _check_visibility(to: Destination, *, is_private: bool) -> None:
    """Refuse to publish by pushing to a public repository, or to publish a private one's past."""
    if to.public and is_private:
        raise UserError(
            what=f"{to.hub_id} is private, and --public would open its history to everybody",
            expected="a new repository with --public, or a private one without it",
            got="a private repository that exists",
            remedy="push without --public, look at its history, and change the visibility in its "
            "settings on the hub; nothing was sent",
        )
    if not to.public and not is_private:
        raise UserError(
            what=f"{to.hub_id} is public, and everybody could read what is sent",
            expected="a private repository",
            got="a public one, without --public",
            remedy="add --public, or make it private in its settings on the hub; nothing was sent",
        )


def _digests(api: huggingface_hub.HfApi, to: Destination) -> dict[str, str]:
    """Every file of a branch: SHA-256 of large ones, otherwise that of git; no other content."""
    entries = api.list_repo_tree(to.hub_id, recursive=True, revision=to.revision)
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, huggingface_hub.hf_api.RepoFile) and entry.path != _OF_THE_HUB
    }


def _holds_just(digests: Mapping[str, str], files: tuple[ExportedFile, ...]) -> bool:
    return digests.keys() == _names(files) and all(_same(digests, file) for file in files)


def _same(digests: Mapping[str, str], file: ExportedFile) -> bool:
    """Whether the hub holds a file with these bytes; a small one is known by its id in git."""
    found = digests.get(file.name)
    if found is None or len(found) == len(file.sha256):
        return found == file.sha256
    content = file.path.read_bytes()
    unchanged = hashlib.sha256(content).hexdigest() == file.sha256
    return unchanged and found == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _names(files: tuple[ExportedFile, ...]) -> set[str]:
    return {file.name for file in files}


@contextlib.contextmanager
def _clear_errors(to: Destination, token: str) -> Iterator[None]:
    """What the hub, its library or the network object to, as one message without the token."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as raised:
        # Uploads in threads wrap what has stopped them.
        wrapped = raised.__cause__ if isinstance(raised, RuntimeError) else None
        error = wrapped if isinstance(wrapped, Exception) else raised
        what, remedy = _explained(error)
        lines = str(error).replace(token, "***").split("\n")
        got = "; ".join(line.strip() for line in lines if line.strip())[:300]
        raise UserError(
            what=f"cannot push to {to.hub_id}: {what}",
            expected="",
            got=f"{type(error).__name__}: {got}",
            remedy=remedy,
        ) from raised


def _explained(error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    explanations: dict[Any, tuple[str, str]] = {
        401: (
            "the hub does not know the token",
            "make a new one at huggingface.co/settings/tokens",
        ),
        403: (
            "the token may not write there",
            "use one with permission to write to this owner, or push to an id of your own",
        ),
        404: ("there is no such owner or repository", "check the spelling of the id"),
        409: ("the repository is not as it was, or not yours to see", "look at it, and push again"),
        412: ("somebody else has pushed to it meanwhile", "look at it, and push again"),
        429: ("the hub has had too many requests", "wait, and push again"),
    }
    if status in explanations:
        return explanations[status]
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub is switched off by HF_HUB_OFFLINE", "unset it, and push again"
    if status is not None:
        return "the hub refused it", "read what it says, and push again"
    if isinstance(error, HTTPError):
        return "the hub does not answer", "check network and HF_ENDPOINT; then push again"
    return "the upload failed", "push again; large files that have arrived are not sent again"
