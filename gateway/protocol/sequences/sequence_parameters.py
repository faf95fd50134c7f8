"""The parameters by which a request says which sequence it belongs to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.data import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_NO_WAIT, SEQUENCE_START

ID_CHARACTERS: Final = 128
"""Of an id that is a string."""
_LARGEST_ID: Final = (1 << 64) - 1
SequenceId = int | str


@dataclass(frozen=True, slots=True)
class SequenceFlags:
    id: SequenceId
    is_start: bool = False
    is_end: bool = False

    def parameters(self, *, may_wait: bool = True) -> dict[str, Any]:
        """As the worker gets them."""
        made: dict[str, Any] = {SEQUENCE_ID: self.id}
        for key, is_set in ((SEQUENCE_START, self.is_start), (SEQUENCE_END, self.is_end)):
            if is_set:
                made[key] = True
        return made if may_wait else {**made, SEQUENCE_NO_WAIT: True}


def sequence_flags(parameters: dict[str, Any]) -> SequenceFlags | None:  # values of JSON
    """None of a request without an id: 0 and "" are none."""
    number = parameters.get(SEQUENCE_ID, 0)
    if isinstance(number, str):
        if len(number) > ID_CHARACTERS:
            raise _error(f"'{SEQUENCE_ID}' must have at most {ID_CHARACTERS} characters")
    elif type(number) is not int or not 0 <= number <= _LARGEST_ID:
        raise _error(f"'{SEQUENCE_ID}' must be a string, or an integer of 0 to {_LARGEST_ID}")
    flags = [parameters.get(key, False) for key in (SEQUENCE_START, SEQUENCE_END)]
    if not all(isinstance(each, bool) for each in flags):
        raise _error(f"'{SEQUENCE_START}' and '{SEQUENCE_END}' must be true or false")
    return SequenceFlags(number, *flags) if number else None


def _error(reason: str) -> CallerError:
    return CallerError("bad_request", f"failed to parse the request: parameter {reason}")
