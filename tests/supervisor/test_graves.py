from __future__ import annotations

import asyncio
from pathlib import Path

from mmsup.supervisor.graves import STEPS, Graves, removal
from mmsup.supervisor.group import Group


class Dying(Group):
    """A group whose last process takes its time."""

    def __init__(self, looks: int) -> None:
        super().__init__(())
        self.looks = looks
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
    for _ in removal(str(scratch)):
        pass
    assert not scratch.exists()
    assert (precious / "file").read_text() == "mine"


def test_a_folder_that_is_not_there_is_removed_already(tmp_path: Path) -> None:
    assert list(removal(str(tmp_path / "none"))) == []


def test_one_turn_removes_a_bounded_number_of_names(tmp_path: Path) -> None:
    async def run() -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        for number in range(STEPS * 2):
            (scratch / str(number)).touch()
        graves = Graves()
        graves.bury(None, str(scratch), str(tmp_path / "socket"))
        assert len(list(scratch.iterdir())) == STEPS
        graves.close()

    asyncio.run(run())


def test_a_group_is_looked_at_again_until_nobody_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "socket").touch()
        group = Dying(looks=3)
        graves = Graves()
        graves.bury(group, str(tmp_path / "scratch"), str(tmp_path / "socket"))
        assert not (tmp_path / "socket").exists()
        async with asyncio.timeout(10):
            await group.removed.wait()
        graves.close()

    asyncio.run(run())
