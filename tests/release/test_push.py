"""`mental-r1 push`: what goes to the hub, what never does, and what is left alone there."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from mental_r1_jax.cli import main
from mental_r1_jax.release.export_manifest import write_manifest
from tests.release.hub_stand_in import TOKEN, Hub

# huggingface_hub's own, where it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = np.random.default_rng(7).bytes(300_000)
CARD = b"---\nlicense: other\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which huggingface_hub takes for the real one."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An exported folder: two files of weights, what belongs to them, and a file for llama.cpp."""
    folder = tmp_path / "hf"
    folder.mkdir()
    files = {
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": WEIGHTS[::-1],
        "model.safetensors.index.json": b"{}",
        "model-q8_0.gguf": WEIGHTS[:1000],
        "config.json": b'{"model_type": "qwen3"}',
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "README.md": CARD,
        "LICENSE": b"Apache",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held(hub: Hub, hub_id: str = "me/model", branch: str = "main") -> dict[str, bytes]:
    """What the hub holds, but for the file that it makes itself."""
    files = hub.repositories[hub_id].branches[branch]
    return {name: file for name, file in files.items() if name != ".gitattributes"}


def push(*arguments: str | Path) -> int:
    return main(["push", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Push what must not be pushed; returns the one message."""
    capsys.readouterr()
    assert push(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors and TOKEN not in errors
    return errors


def test_every_file_arrives_as_it_is_in_a_private_repository(
    hub: Hub, export: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert push(export, "me/model") == 0
    assert held(hub) == content(export)
    assert hub.repositories["me/model"].private
    # Each file of weights by itself, and all else in one commit.
    assert len(hub.large) == 3
    assert hub.changes().count("POST /api/models/me/model/commit/main") == 1
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "on the hub: " in shown and "300,000  model-00001-of-00002.safetensors" in shown
    assert TOKEN not in shown
    assert not any(TOKEN.encode() in body for _, _, body in hub.requests)


def test_a_second_push_of_the_same_changes_nothing(hub: Hub, export: Path) -> None:
    assert push(export, "me/model") == 0
    before = hub.changes()
    assert push(export, "me/model") == 0
    assert hub.changes() == before


def test_public_only_if_asked_and_the_gguf_file_may_stay(hub: Hub, export: Path) -> None:
    assert push(export, "me/model", "--public", "--no-gguf") == 0
    assert not hub.repositories["me/model"].private
    expected = content(export)
    del expected["model-q8_0.gguf"]
    assert held(hub) == expected


def test_a_dry_run_sends_nothing_and_needs_no_token(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(export, "me/model", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-1]}
    assert sizes == {name: len(data) for name, data in content(export).items()}
    assert "nothing was sent" in lines[-1] and hub.requests == []


@pytest.mark.parametrize(
    "stranger",
    ["predictions.csv", "metrics.jsonl", "posts.txt", "checkpoints", "notes.md", "vocab.txt"],
)
def test_what_export_did_not_write_is_never_sent(
    stranger: str, hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also under the name of a model's own file."""
    if stranger == "checkpoints":
        (export / stranger).mkdir()
    else:
        (export / stranger).write_text("a made-up post")
    message = refused(capsys, export, "me/model")
    assert stranger in message and "nothing was sent" in message and hub.requests == []


def test_documents_of_the_start_model_are_looked_at_by_somebody_first(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export copies them by their suffix, so the manifest has them, too."""
    (export / "my_posts.json").write_text("{}")
    write_manifest(export)
    assert "my_posts.json" in refused(capsys, export, "me/model") and hub.requests == []
    (export / "my_posts.json").unlink()
    assert push(export, "me/model") == 0 and held(hub) == content(export)


def test_a_link_is_not_followed(
    hub: Hub, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (export / "config.json").rename(tmp_path / "elsewhere.json")
    (export / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert "config.json" in refused(capsys, export, "me/model") and hub.requests == []


@pytest.mark.parametrize("change", ["flipped", "shortened", "missing"])
def test_an_export_that_is_not_whole_is_refused(
    change: str, hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export / "model-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[1234] ^= 1
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes(data if change == "flipped" else data[:-1])
    said = "is missing" if change == "missing" else "has changed"
    assert f"{file.name} {said}" in refused(capsys, export, "me/model") and hub.requests == []


def test_a_folder_without_manifest_or_mark_is_refused(
    hub: Hub, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no folder of this name" in refused(capsys, tmp_path / "nothing", "me/model")
    assert "not an exported folder" in refused(capsys, tmp_path, "me/model")
    marker = export / "mental_r1_export.json"
    content = json.loads(marker.read_text())
    del content["sha256"]
    marker.write_text(json.dumps(content))
    assert "did not finish" in refused(capsys, export, "me/model")
    assert hub.requests == []


def test_the_card_may_be_edited(hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "README.md").write_bytes(CARD + b"Licence: ours.\n")
    assert push(export, "me/model") == 0
    assert held(hub)["README.md"].endswith(b"ours.\n")
    assert "README.md (edited after the export)" in capsys.readouterr().out


def test_adapters_go_with_a_base_that_others_have(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    config = {"r": 16, "base_model_name_or_path": str(tmp_path / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_bytes(CARD)
    write_manifest(folder)
    message = refused(capsys, folder, "me/adapter")
    assert "a base that nobody else has" in message and str(tmp_path) not in message
    edited = {**config, "base_model_name_or_path": "Qwen/Qwen3-8B"}
    (folder / "adapter_config.json").write_text(json.dumps(edited, indent=4))
    assert push(folder, "me/adapter") == 0
    assert held(hub, "me/adapter") == content(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**edited, "r": 8}))
    assert "adapter_config.json has changed" in refused(capsys, folder, "me/adapter")


def test_other_content_is_replaced_only_with_consent(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"model.safetensors": b"old", "thesis.pdf": b"years of work"}
    hub.has("me/model", **theirs)
    message = refused(capsys, export, "me/model")
    assert "something else" in message and "--replace" in message
    assert hub.changes() == [] and held(hub) == theirs
    # A branch of its own leaves the main one alone, and holds none of it.
    assert push(export, "me/model", "--revision", "trial") == 0
    assert held(hub) == theirs and held(hub, branch="trial") == content(export)
    assert push(export, "me/model", "--replace") == 0
    assert held(hub) == content(export)


def test_an_empty_repository_is_filled(hub: Hub, export: Path) -> None:
    """As an upload leaves it that was ended between making the repository and the commit."""
    hub.has("me/model")
    assert push(export, "me/model") == 0
    assert held(hub) == content(export)


def test_nothing_is_made_public_by_the_way(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.has("me/open", private=False)
    hub.has("me/closed")
    assert "is public" in refused(capsys, export, "me/open", "--replace")
    assert "is private" in refused(capsys, export, "me/closed", "--public")
    assert hub.changes() == []
    assert push(export, "me/open", "--public") == 0


@pytest.mark.parametrize(
    "hub_id", ["model", "me/mo/del", "me/", "me/../x", "https://h.co/me/x", ""]
)
def test_a_wrong_id(
    hub_id: str, hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not the id of a model" in refused(capsys, export, hub_id) and hub.requests == []


def test_tokens_that_are_missing_unknown_or_not_enough(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "may not write there" in refused(capsys, export, "you/model")
    monkeypatch.setenv("HF_TOKEN", "hf_stolen")
    message = refused(capsys, export, "me/model")
    assert "does not know the token" in message and "hf_stolen" not in message
    monkeypatch.delenv("HF_TOKEN")
    before = list(hub.requests)
    assert "there is no token" in refused(capsys, export, "me/model")
    assert hub.requests == before and hub.repositories == {}


def test_no_network(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert "the hub does not answer" in refused(capsys, export, "me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(capsys, export, "me/model")


def test_a_push_is_repeated_without_sending_weights_again(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = True
    assert "the hub refused it" in refused(capsys, export, "me/model")
    assert len(hub.large) == 3 and held(hub) == {}
    hub.fails = False
    hub.requests.clear()
    assert push(export, "me/model") == 0
    assert held(hub) == content(export)
    assert not any(change.startswith("PUT") for change in hub.changes())


def test_somebody_else_s_commit_in_between_is_not_buried(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.has("me/model")
    hub.intrudes = True
    assert "somebody else has pushed" in refused(capsys, export, "me/model")
    assert held(hub) == {}


def test_what_arrived_otherwise_is_noticed(
    hub: Hub, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.spoils = True
    assert "does not hold just what was sent" in refused(capsys, export, "me/model")
