from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmsup.ipc.memory.kernel_file import read_kernel_file


def test_a_file_is_read_whole_however_long_it_is(tmp_path: Path) -> None:
    for size in (0, 1, 16 << 10, (16 << 10) + 1, 100_000):
        (tmp_path / "file").write_text("x" * size)
        assert read_kernel_file(str(tmp_path / "file")) == "x" * size
    assert read_kernel_file("/proc/self/maps").count("\n") > 100


def test_what_cannot_be_read_is_an_error_and_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            read_kernel_file(path)
    assert len(os.listdir("/proc/self/fd")) == before
