"""What a keeper hands over, of a server that has next to nothing."""

from __future__ import annotations

from mmsup.supervisor.keeper import reexec


def estate_of(**fields: object) -> reexec.KeeperState:
    plain = {
        "life": 1,
        "settings": "{}",
        "brains": 1,
        "remembered": "",
        "locks": (),
        "listeners": {},
        "addresses": {},
        "socket_paths": (),
        "lifeline": 0,
        "life_end": 0,
        "tallies": (),
        "notify_address": "",
        "watchdog_s": 0.0,
        "charges": (),
        "graves": (),
    }
    return reexec.KeeperState(**(plain | fields))  # type: ignore[arg-type]  # fields by name
