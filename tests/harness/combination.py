"""The combination of server options that the tests of a run start their servers with.

`--combination NAME` chooses one. `by-commit` takes one that is not the default, by the commit's id: over the commits
every combination has its turn, and each commit always gets the same one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

DEFAULT: Final = "default"
BY_COMMIT: Final = "by-commit"
FLAGS: Final[dict[str, tuple[str, ...]]] = {
    DEFAULT: (),
    "zeromq": ("--worker-link", "zeromq"),
    "zygotes": ("--zygotes", "eager"),
    "exec": ("--zygotes", "none"),
    "plain": ("--http-front", "plain"),
    "zeromq-plain": ("--worker-link", "zeromq", "--http-front", "plain"),
}
OTHERS: Final = tuple(name for name in FLAGS if name != DEFAULT)
flags: tuple[str, ...] = ()
"""Those of this run; a test's own flags come after them and win."""


def is_plain() -> bool:
    """Whether aiohttp serves all connections: idle ones do not give way to new ones then."""
    return "plain" in flags


def is_zeromq() -> bool:
    """Whether ZeroMQ carries requests to workers: each has a socket in the runtime folder then."""
    return "zeromq" in flags


def forks() -> bool:
    """Whether workers are forked, from the first one on."""
    return "eager" in flags


def choose(name: str) -> str:
    """Start servers with this combination from now on. Returns its name and, for `by-commit`, the commit."""
    global flags  # noqa: PLW0603 - one for the whole run
    chosen, reason = name, ""
    if name == BY_COMMIT:
        commit = current_commit()
        chosen, reason = of_commit(commit), f" (by commit {commit[:12]})"
    flags = FLAGS[chosen]
    return f"{chosen}{reason}"


def of_commit(commit: str) -> str:
    """The combination whose turn it is at a commit, given by its id in hexadecimal digits."""
    return OTHERS[int(commit, 16) % len(OTHERS)]


def current_commit() -> str:
    """The id of the checked-out commit; 0 outside a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "0"
