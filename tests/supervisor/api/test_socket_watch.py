from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

from mmsup.supervisor.api.socket_watch import SocketWatch, listen


def opened(path: Path) -> list[socket.socket]:
    """What one look makes."""
    made: list[socket.socket] = []

    async def look() -> None:
        door = SocketWatch(str(path), made.append)
        door.start()
        door.close()

    asyncio.run(look())
    return made


def test_a_socket_of_ours_is_left_alone(tmp_path: Path) -> None:
    with listen(str(tmp_path / "a")):
        assert opened(tmp_path / "a") == []


def test_a_socket_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print(flush=True); input()"
    )
    path = str(tmp_path / "a")
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (made,) = opened(tmp_path / "a")
        other.kill()
    assert made.getsockname() == str(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    made.close()


def test_a_folder_that_is_gone_is_made_private(tmp_path: Path) -> None:
    (made,) = opened(tmp_path / "run" / "a")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    made.close()


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("somebody's")
    assert opened(tmp_path / "a") == []
    assert (tmp_path / "a").read_text() == "somebody's"
