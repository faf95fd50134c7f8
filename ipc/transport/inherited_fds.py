"""The descriptors that a process was born with: `NAME=FD` among its arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_ARGUMENT: Final = re.compile(r"([a-z]+(?::[a-z0-9_]+)?)=([0-9]+)")


def parse_inherited_fds(arguments: Sequence[str]) -> dict[str, int]:
    """Name to descriptor, of those arguments that have the form; others are labels for people who read `ps`."""
    found = (_ARGUMENT.fullmatch(each) for each in arguments)
    return {match[1]: int(match[2]) for match in found if match}
