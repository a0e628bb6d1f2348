"""What one process alone can show of `hosts`; tests/hosts runs several."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import pytest

from mental_r1_jax import hosts
from mental_r1_jax.errors import UserError
from mental_r1_jax.sharding import make_mesh

PLAIN = {
    "MENTAL_R1_COORDINATOR": "10.0.0.1:1234",
    "MENTAL_R1_NUM_PROCESSES": "4",
    "MENTAL_R1_PROCESS_ID": "3",
}
PLAIN_ARGUMENTS = {
    "coordinator_address": "10.0.0.1:1234",
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param(NO_TPU, None, id="laptop"),
        pytest.param({"JAX_PLATFORMS": "cpu"}, None, id="cpu on a TPU machine"),
        pytest.param(PLAIN, PLAIN_ARGUMENTS, id="plain variables"),
        pytest.param(PLAIN | SLURM, PLAIN_ARGUMENTS, id="plain variables come first"),
        pytest.param(SLURM | NO_TPU, {}, id="slurm"),
        pytest.param(SLURM | {"SLURM_NTASKS": "1"} | NO_TPU, None, id="slurm with one task"),
        pytest.param({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, id="gke"),
        pytest.param({"TPU_WORKER_HOSTNAMES": "a"}, None, id="one host on gke"),
        pytest.param(
            {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}, id="slices of one host"
        ),
        pytest.param({"TPU_PROCESS_ADDRESSES": "local"} | NO_TPU, None, id="notebook service"),
        pytest.param({}, {}, id="cloud tpu vm"),
    ],
)
def test_the_environment_says_who_belongs_together(
    environment: dict[str, str], expected: dict[str, Any] | None
) -> None:
    assert hosts.cluster_arguments(environment) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"MENTAL_R1_COORDINATOR": "10.0.0.1"},
        {"MENTAL_R1_PROCESS_ID": "4"},
        {"MENTAL_R1_PROCESS_ID": ""},
        {"MENTAL_R1_NUM_PROCESSES": "four"},
    ],
)
def test_variables_that_do_not_fit_together_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(UserError, match="do not fit together") as refused:
        hosts.cluster_arguments(PLAIN | changes)
    assert all(f"{name}={value}" in str(refused.value) for name, value in changes.items())


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_rows_come_back_from_the_devices_as_they_went(axes: tuple[int, int, int]) -> None:
    mesh = make_mesh(*axes)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    assert hosts.local_rows(mesh, 16).tolist() == list(range(16))
    placed = hosts.put_batch(mesh, {"rows": rows})["rows"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {
        (16 // (axes[0] * axes[1]), 3)
    }
    np.testing.assert_array_equal(placed, rows)
    np.testing.assert_array_equal(hosts.fetch_rows(placed), rows)


def test_one_process_is_all_processes() -> None:
    assert jax.process_count() == 1 and hosts.is_first()
    table = np.ones((2, 3))
    assert hosts.all_rows(make_mesh(8, 1, 1), table) is table
    assert hosts.largest(7) == 7
    assert hosts.all_items([(2, "c"), (0, "a"), (1, "b"), (2, "c")]) == ["a", "b", "c"]


def test_an_error_of_a_single_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(ZeroDivisionError), hosts.joined(stops_between_steps=True):
        raise ZeroDivisionError
    with pytest.raises(UserError), hosts.joined(stops_between_steps=False):
        raise UserError(what="a", expected="b", got="c", remedy="d")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        # What jax raises where another process has ended within an exchange.
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"), 2, "cannot go on"),
        (jax.errors.JaxRuntimeError("INTERNAL: a device is gone"), 2, "cannot go on"),
        # Orbax, where another process has ended before a checkpoint was committed.
        (TimeoutError("Timed out while waiting for async_write_complete barrier."), 2, "cannot"),
        (OSError(28, "No space left on device"), 2, "make room"),
        (ValueError("a mistake of ours"), 1, "Traceback"),
    ],
)
def test_of_several_processes_one_says_why_it_ends_and_ends_at_once(
    error: Exception,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hosts, "join", lambda **_: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended, hosts.joined(stops_between_steps=True):
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == status
    assert words in said and ("Traceback" in said) == (status == 1)
