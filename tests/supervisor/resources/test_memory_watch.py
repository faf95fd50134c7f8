"""Which worker is above a cap that no control group keeps."""

from __future__ import annotations

import pytest

from mmsup.supervisor.resources.memory_watch import breach

MIB = 1 << 20


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({}, ""),
        ({7: 200}, ""),
        ({7: 100, 8: 60, 9: 40}, ""),
        ({7: 201}, "it held 201MiB: cap 200MiB"),
        ({7: 100, 8: 60, 9: 41}, "it held 201MiB, 101MiB of it in processes that it started: cap 200MiB"),
        ({8: 201}, "it held 201MiB, 201MiB of it in processes that it started: cap 200MiB"),  # it has just exited
    ],
)
def test_all_processes_of_a_worker_count_together(held: dict[int, int], words: str) -> None:
    text = breach(7, 200 * MIB, {pid: mib * MIB for pid, mib in held.items()})
    assert text.partition(";")[0] == words
