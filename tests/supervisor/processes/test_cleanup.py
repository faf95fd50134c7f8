from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.processes.cleanup import MAX_NAMES, Cleanup, remove_tree


class Dying(Cgroup):
    """A control group whose last process takes a while to exit."""

    def __init__(self, checks: int) -> None:
        super().__init__(())
        self.looks = checks
        self.removed = asyncio.Event()

    def kill(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def remove(self) -> bool:
        self.removed.set()
        return True


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    scratch = tmp_path / "scratch"
    (scratch / "deep" / "deeper").mkdir(parents=True)
    (scratch / "link").symlink_to(precious)
    (scratch / "deep" / "file").write_text("x")
    for _ in remove_tree(str(scratch)):
        pass
    assert not scratch.exists()
    assert (precious / "file").read_text() == "mine"


@pytest.fixture
def deep_tree(tmp_path: Path) -> Iterator[Path]:
    """A tree about as deep as a path can name, too deep for recursion."""
    deepest = str(tmp_path / "scratch")
    os.mkdir(deepest)
    for _ in range(1500):
        deepest += "/d"
        os.mkdir(deepest)
    yield tmp_path / "scratch"
    subprocess.run(["/bin/rm", "-rf", str(tmp_path / "scratch")], check=True)


@pytest.mark.slow
def test_a_tree_as_deep_as_a_path_can_be_is_removed_with_few_descriptors(deep_tree: Path) -> None:
    assert 1 <= max(descriptors_below(deep_tree) for _ in remove_tree(str(deep_tree))) <= 2
    assert not deep_tree.exists()


def descriptors_below(folder: Path) -> int:
    """How many descriptors of this process are open in a folder; its other ones may come and go."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or its path is too long to be told
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
    return found


def test_what_cannot_be_removed_is_left_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch" / "deep").mkdir(parents=True)
    (tmp_path / "scratch" / "deep" / "file").touch()
    refusal = PermissionError(1, "Operation not permitted")

    def refuse(_: object) -> None:
        raise refusal

    monkeypatch.setattr(os, "unlink", refuse)
    assert len(list(remove_tree(str(tmp_path / "scratch")))) < 10
    assert (tmp_path / "scratch" / "deep" / "file").exists()


def test_a_missing_folder_counts_as_removed(tmp_path: Path) -> None:
    assert list(remove_tree(str(tmp_path / "none"))) == []


def test_one_run_removes_a_bounded_number_of_names(tmp_path: Path) -> None:
    async def run() -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        for number in range(MAX_NAMES * 2):
            (scratch / str(number)).touch()
        graves = Cleanup()
        graves.add(None, str(scratch), str(tmp_path / "socket"))
        assert len(list(scratch.iterdir())) == MAX_NAMES
        graves.close()

    asyncio.run(run())


def test_a_group_is_checked_again_until_it_is_empty(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "socket").touch()
        group = Dying(checks=3)
        graves = Cleanup()
        graves.add(group, str(tmp_path / "scratch"), str(tmp_path / "socket"))
        assert not (tmp_path / "socket").exists()
        async with asyncio.timeout(10):
            await group.removed.wait()
        graves.close()

    asyncio.run(run())
