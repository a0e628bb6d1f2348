"""The check at the end of setup, on the suite's eight CPU devices."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.tpu_scripts.conftest import SCRIPTS


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "check_devices", SCRIPTS / "worker/check_devices.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "join", lambda: None)
    return module


def test_eight_devices_add_up_to_36(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_devices.py", "--devices", "8"])
    assert check.sum_over_devices() == 36
    assert check.main() == 0


def test_a_missing_worker_is_an_error(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_devices.py", "--devices", "16"])
    assert check.main() == 1
    assert "error: expected 16 devices, got 8" in capsys.readouterr().err


def test_a_wrong_sum_is_an_error(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_devices.py", "--devices", "8"])
    monkeypatch.setattr(check, "sum_over_devices", lambda: 28)
    assert check.main() == 1
    assert "error: the sum of 1 to 8 over all devices is 28" in capsys.readouterr().err
