"""Which parameters make a request one of a sequence."""

from __future__ import annotations

from typing import Any

import pytest

from mmsup.gateway.protocol.sequences.sequence_parameters import SequenceFlags, sequence_flags
from mmsup.ipc.errors import CallerError


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, None),
        ({"sequence_id": 0, "sequence_start": True}, None),
        ({"sequence_id": ""}, None),
        ({"sequence_id": 5}, SequenceFlags(5)),
        ({"sequence_id": (1 << 64) - 1, "sequence_end": True}, SequenceFlags((1 << 64) - 1, is_end=True)),
        ({"sequence_id": "a", "sequence_start": True}, SequenceFlags("a", is_start=True)),
    ],
)
def test_an_id_that_is_not_empty_makes_a_sequence(parameters: dict[str, Any], expected: SequenceFlags | None) -> None:
    assert sequence_flags(parameters) == expected


@pytest.mark.parametrize(
    "parameters",
    [
        {"sequence_id": -1},
        {"sequence_id": 1 << 64},
        {"sequence_id": True},
        {"sequence_id": 1.0},
        {"sequence_id": "x" * 129},
        {"sequence_id": 1, "sequence_start": 1},
        {"sequence_end": "true"},
    ],
)
def test_what_is_of_another_type_or_size_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(CallerError, match="parameter") as caught:
        sequence_flags(parameters)
    assert caught.value.code == "bad_request"


def test_the_worker_gets_only_the_flags_that_are_set() -> None:
    assert SequenceFlags("a").parameters() == {"sequence_id": "a"}
    assert SequenceFlags(1, is_start=True, is_end=True).parameters(may_wait=False) == {
        "sequence_id": 1,
        "sequence_start": True,
        "sequence_end": True,
        "triton_sequence_no_wait": True,
    }
