from __future__ import annotations

import os
import socket
from pathlib import Path

from mmsup.supervisor.api.socket_watch import listen
from mmsup.supervisor.linux.unix_socket import is_listener, listener_pid


def test_the_process_that_listens_is_known_and_none_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert not is_listener(str(path), os.getpid())
    with listen(str(path)):
        assert is_listener(str(path), os.getpid())
        assert not is_listener(str(path), 1)
    assert not is_listener(str(path), os.getpid())  # the file is there, and nobody behind it


def test_a_socket_too_busy_to_be_asked_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        assert is_listener(path, 1)


def test_a_listener_tells_who_listened_on_it_last(tmp_path: Path) -> None:
    with listen(str(tmp_path / "a")) as made:
        child = os.fork()
        if child == 0:
            made.listen()
            os._exit(0)
        os.waitpid(child, 0)
        assert listener_pid(made) == child
        assert is_listener(str(tmp_path / "a"), child)
        made.listen()
        assert listener_pid(made) == os.getpid()
