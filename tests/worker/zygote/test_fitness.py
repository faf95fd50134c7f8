from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mmsup.worker.zygote.fitness import LoadedCode, unfitness


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has loaded is not asked: tests run with libraries of all kinds."""
    monkeypatch.setattr(os, "listdir", lambda _: ["1"])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)))


@pytest.mark.usefixtures("alone")
def test_a_process_with_one_thread_and_without_cuda_is_fit() -> None:
    assert unfitness() == ""


def test_a_second_thread_is_found() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert "threads" in unfitness()
    finally:
        go.set()
        thread.join()


@pytest.mark.usefixtures("alone")
def test_an_initialized_cuda_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True)))
    assert unfitness() == "it has initialized CUDA"


@pytest.mark.usefixtures("alone")
def test_an_open_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda _: "/dev/nvidia0")
    assert unfitness() == "it has opened a GPU"


@pytest.mark.usefixtures("alone")
def test_a_loaded_driver_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "7f00-7f01 r-xp 0 00:00 0 /usr/lib/libcuda.so.550\n")
    assert unfitness() == "it has loaded the CUDA driver"


def test_a_change_of_any_imported_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.py"
    path.write_text("x = 1\n")
    part = ModuleType("mmsup.part")
    part.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "mmsup.part", part)
    code = LoadedCode()
    assert not code.has_changed()
    path.write_text("x = 22\n")
    assert code.has_changed()
    path.unlink()
    assert code.has_changed()
