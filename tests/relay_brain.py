"""A brain without a will of its own: it beats, and hands on every word between its keeper and a test.

python relay_brain.py TEST_SOCKET control=FD …
"""

from __future__ import annotations

import os
import select
import socket
import sys

from mmsup.ipc.messages.keeper_control import Heartbeat
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import to_json

BEAT_S = 0.1


def main() -> None:
    path, *named = sys.argv[1:]
    descriptors = {name: int(fd) for name, fd in (each.split("=") for each in named)}
    keeper = ControlChannel.from_fd(descriptors["control"])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    test = ControlChannel(sock)
    test.send(f"{os.getpid()} {' '.join(sorted(descriptors))}".encode())
    while True:
        keeper.send(to_json(Heartbeat()))
        readable, _, _ = select.select([keeper, test], [], [], BEAT_S)
        for end, other in ((keeper, test), (test, keeper)):
            if end in readable and (got := end.receive()) is not None:
                while not other.send(*got):
                    select.select([], [other], [])
                close_fds(got[1])
                if got[0].startswith(b'["Finished"'):
                    return


if __name__ == "__main__":
    try:
        main()
    except ChannelClosed:
        sys.exit(0)
