from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mmsup.supervisor.linux.sd_notify import SystemdNotifier


def heard_at(address: str | bytes, text: str, environ: dict[str, str]) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        SystemdNotifier.from_environ(environ, 1).send(text)
        return systemd.recv(1000)


def test_systemd_hears_at_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    assert heard_at(path, "READY=1\nSTATUS=3 models", {"NOTIFY_SOCKET": path}) == b"READY=1\nSTATUS=3 models"


def test_systemd_hears_at_an_abstract_address(tmp_path: Path) -> None:
    name = f"mmsup_test_{tmp_path.name}"
    assert heard_at(f"\0{name}", "STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"}) == b"STOPPING=1"


def test_the_variables_are_gone_afterwards_and_others_are_not() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    assert SystemdNotifier.from_environ(environ, 7).watchdog_s == 5.0
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
    ],
)
def test_the_watchdog_is_ours_only_if_it_means_us(environ: dict[str, str], watchdog_s: float) -> None:
    assert SystemdNotifier.from_environ(environ, 7).watchdog_s == watchdog_s


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@mmsup_test_nobody_listens"])
def test_nobody_listening_is_no_error(address: str) -> None:
    SystemdNotifier(address, 0.0).send("READY=1")


def test_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notifier = SystemdNotifier(path, 0.0)
        for _ in range(2000):
            notifier.send("WATCHDOG=1")
