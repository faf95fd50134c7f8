"""Symbolic links in a model repository: which of them may be followed.

A link may lead to anything in a repository of this server, or in a folder that `--follow-links` names. Whoever may
write into a repository would otherwise have any file of the machine read as a configuration or a model.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from mmsup.supervisor.config.config_error import ConfigError, displayed
from mmsup.supervisor.config.settings import Settings

PATH_LENGTH: Final = 4096
"""Paths are to be copied from an error: they are not cut."""
ENTRIES: Final = 4096
"""Links and folders of a version that are looked at: the controller's loop waits for it, for about 50 ms at most."""


def followed_folders(settings: Settings) -> tuple[str, ...]:
    """Resolved paths of the folders into which links may lead."""
    return tuple(os.path.realpath(each) for each in (*settings.repositories, *settings.follow_links))


def link_error(place: str, path: str, followed: Sequence[str]) -> ConfigError | None:
    """Why a path is not followed, if it is a link; `place` is that of the error. OSError if it cannot be examined."""
    if not os.path.islink(path):
        return None
    target = os.path.realpath(path)
    try:
        os.stat(path)
    except FileNotFoundError:
        text = "is a link to something that is not there"
        return ConfigError(place, f"{text}: {displayed(target, PATH_LENGTH)}", f"{place}: {text}")
    if any(target == each or target.startswith(each.rstrip("/") + "/") for each in followed):
        return None
    text = "is a link that leads out of the repository"
    advice = f"copy it, or allow its folder by --follow-links {displayed(os.path.dirname(target), PATH_LENGTH)}"
    return ConfigError(
        place, f"{text}, to {displayed(target, PATH_LENGTH)}: {advice}", f"{place}: {text}; --follow-links allows it"
    )


def link_errors(place: str, folder: str, followed: Sequence[str]) -> Iterator[ConfigError]:
    """The same for a folder, everything in it, and everything in the folders below: the first ENTRIES of them, nearest
    first. OSError if the folder cannot be read. Below it, what cannot be read and what leads nowhere is no error: no
    engine reads anything there."""
    error = link_error(place, folder, followed)
    if error is not None:
        yield error
        return
    entries = _entries(folder)
    yield from _errors(place, entries, followed)
    waiting, known, count = deque([(place, entries)]), {_identity(os.stat(folder))}, len(entries)
    while waiting:
        place, entries = waiting.popleft()
        for each in entries:
            with contextlib.suppress(OSError):
                if count >= ENTRIES or not _is_new_folder(each, followed, known):
                    continue
                inner = _entries(each.path)
                count += len(inner)
                below = f"{place}/{each.name}"
                yield from _errors(below, [link for link in inner if os.path.exists(link.path)], followed)
                waiting.append((below, inner))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The links and folders in a folder."""
    with os.scandir(folder) as entries:
        return sorted((each for each in entries if each.is_symlink() or each.is_dir()), key=lambda each: each.name)


def _errors(place: str, entries: Sequence[os.DirEntry[str]], followed: Sequence[str]) -> Iterator[ConfigError]:
    for each in entries:
        if each.is_symlink() and (error := link_error(f"{place}/{each.name}", each.path, followed)):
            yield error


def _is_new_folder(entry: os.DirEntry[str], followed: Sequence[str], known: set[tuple[int, int]]) -> bool:
    """Whether to look into it: links may lead to it again, and one that is not followed is an error already."""
    if not os.path.isdir(entry.path) or (entry.is_symlink() and link_error("", entry.path, followed)):
        return False
    identity = _identity(entry.stat())
    is_new = identity not in known
    known.add(identity)
    return is_new


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
