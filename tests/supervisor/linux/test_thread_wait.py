from __future__ import annotations

import pytest

from mmsup.supervisor.linux.thread_wait import Wait, sockets_awaited, wait_of

SOCKETS = {3, 5, 6}


def recorded(call: str, polled: tuple[int, ...] = (), watched: tuple[int, ...] = ()) -> int | None:
    """As on x86_64."""
    tables = (lambda _address, _count: list(polled)), (lambda _fd: list(watched))
    return sockets_awaited(call, SOCKETS.__contains__, *tables, machine="x86_64")


def call(number: int, first: int) -> str:
    """A line of /proc/PID/syscall."""
    return f"{number} {first:#x} 0x7f3a2c000b60 0x4000 0x0 0x0 0x0 0x7ffd1c0 0x7f3a31"


@pytest.mark.parametrize(
    ("state", "wchan", "sockets", "found"),
    [
        ("R", "", 0, Wait.NOTHING_OUTSIDE),
        ("S", "futex_wait_queue", 0, Wait.NOTHING_OUTSIDE),
        ("S", "futex_do_wait", None, Wait.NOTHING_OUTSIDE),
        ("S", "hrtimer_nanosleep", None, Wait.NOTHING_OUTSIDE),
        ("S", "pipe_read", 0, Wait.NOTHING_OUTSIDE),
        ("S", "do_wait", 0, Wait.NOTHING_OUTSIDE),
        ("S", "wait_woken", 1, Wait.SOCKET),
        ("S", "wait_woken", None, Wait.SOCKET),
        ("S", "poll_schedule_timeout.constprop.0", None, Wait.SOCKET),
        ("S", "poll_schedule_timeout.constprop.0", 0, Wait.NOTHING_OUTSIDE),
        ("S", "ep_poll", 0, Wait.NOTHING_OUTSIDE),
        ("S", "request_wait_answer", 0, Wait.DISK),
        ("D", "folio_wait_bit_common", None, Wait.DISK),
        ("D", "", None, Wait.DISK),
        ("D", "rpc_wait_bit_killable", None, Wait.DISK),
        ("D", "kernel_clone", None, Wait.NOTHING_OUTSIDE),
        ("D", "__refrigerator", None, Wait.STOPPED),
        ("D", "hrtimer_nanosleep", 0, Wait.STOPPED),
        ("D", "futex_do_wait", 0, Wait.STOPPED),
        ("D", "poll_schedule_timeout.constprop.0", 1, Wait.STOPPED),
        ("S", "do_freezer_trap", None, Wait.STOPPED),
        ("T", "do_signal_stop", None, Wait.STOPPED),
        ("t", "ptrace_stop", None, Wait.STOPPED),
        ("Z", "", None, Wait.NOTHING_OUTSIDE),
    ],
)
def test_what_a_thread_waits_for(state: str, wchan: str, sockets: int | None, found: Wait) -> None:
    assert wait_of(state, wchan, sockets) is found


@pytest.mark.parametrize(
    ("line", "polled", "watched", "count"),
    [
        (call(0, 3), (), (), 1),  # read
        (call(45, 5), (), (), 1),  # recvfrom
        (call(0, 4), (), (), 0),  # read of a pipe
        (call(202, 3), (), (), 0),  # futex: the first argument is an address
        (call(230, 0), (), (), 0),  # clock_nanosleep
        (call(7, 0x7F00), (4, 6), (), 1),
        (call(7, 0x7F00), (4,), (), 0),
        (call(232, 9), (), (5,), 0),  # an event loop that watches nothing but its own wake-up
        (call(232, 9), (), (5, 6), 1),
        (call(23, 0), (), (), 0),  # select without descriptors is a pause
        (call(23, 7), (), (), 1),
        ("running", (), (), 0),
        ("-1 0x7ffc 0x7f3a", (), (), 0),
        ("", (), (), None),  # not ours to see
    ],
)
def test_the_sockets_of_a_system_call(
    line: str, polled: tuple[int, ...], watched: tuple[int, ...], count: int | None
) -> None:
    assert recorded(line, polled, watched) == count


def test_a_machine_whose_calls_are_not_known_is_judged_by_the_kernel_function() -> None:
    assert sockets_awaited(call(0, 3), bool, lambda *_: [], lambda _: [], machine="riscv64") is None
