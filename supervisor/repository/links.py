"""Symbolic links in a model repository: which of them may be followed.

A link may lead to anything in a repository of this server, or in a folder that `--follow-links` names. Whoever may
write into a repository would otherwise have any file of the machine read as a configuration or a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from mmsup.supervisor.config.config_error import ConfigError, displayed
from mmsup.supervisor.config.settings import Settings

PATH_LENGTH: Final = 4096
"""Paths are to be copied from an error: they are not cut."""


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
    """The same for a folder and everything in it, and in a folder `model.onnx` there. OSError if one cannot be read."""
    error = link_error(place, folder, followed)
    if error is not None:
        yield error
        return
    with os.scandir(folder) as entries:
        links = sorted(each.name for each in entries if each.is_symlink() or each.name.endswith(".onnx"))
    for name in links:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            error = link_error(f"{place}/{name}", path, followed)
            if error is not None:
                yield error
        elif os.path.isdir(path):
            yield from link_errors(f"{place}/{name}", path, followed)
