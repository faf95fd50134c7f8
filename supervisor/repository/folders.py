"""Lists the folders of a model repository and their files, without opening one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final

from mmsup.supervisor.config.config_error import InvalidValue, displayed
from mmsup.supervisor.config.yaml_file import NOT_REGULAR
from mmsup.supervisor.repository.artifact import engine_of

DIGEST_FILES: Final = 4096


def folder_names(directory: str | int) -> list[str]:
    """Names of the folders in a folder, of links to folders and of those that lead nowhere, without hidden ones."""
    with os.scandir(directory) as entries:
        return sorted(each.name for each in entries if not each.name.startswith(".") and _is_folder(each))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """True also for what cannot be examined, or is not there: reading it reports the error, and the other models are
    read."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not entry.is_file() and not _has_target(entry))
    except OSError:
        return True


def _has_target(link: os.DirEntry[str]) -> bool:
    try:
        link.stat()
    except FileNotFoundError:
        return False
    return True


def file_names(directory: str, *, refuse: bool = False) -> set[str]:
    """Names of the files in a version's folder; a folder `model.onnx` contains the file and its external weights.

    With `refuse`: InvalidValue for a pipe, a socket or a device with a model's name, which an engine would block on.
    """
    found: set[str] = set()
    with os.scandir(directory) as entries:
        for each in entries:
            inner = f"{each.name}/{each.name}"
            if each.is_file():
                found.add(each.name)
            elif each.is_dir():
                if each.name.endswith(".onnx") and os.path.isfile(os.path.join(directory, inner)):
                    found.add(inner)
            elif refuse and engine_of(each.name) and os.path.exists(each.path):
                raise InvalidValue(f"{displayed(each.name)} {NOT_REGULAR}")
    return found


def file_digest(directory: str, versions: tuple[str, ...]) -> str:
    """A digest of names, inodes, sizes and times of the first DIGEST_FILES files in each folder, among them
    those of a folder `model.onnx`. Other folders of a version are not included: the `__pycache__` of an imported
    model.py is no change of the model."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in _digested_folders(directory, versions):
        for name in sorted(file_names(folder))[:DIGEST_FILES]:
            path = os.path.join(folder, name)
            facts = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{facts.st_ino}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()


def _digested_folders(directory: str, versions: tuple[str, ...]) -> Iterator[str]:
    yield directory
    for folder in (os.path.join(directory, each) for each in versions):
        if os.path.isdir(folder):  # a link that leads nowhere has nothing to digest
            yield folder
            inner = (os.path.join(folder, each) for each in folder_names(folder) if each.endswith(".onnx"))
            yield from (each for each in inner if os.path.isdir(each))
