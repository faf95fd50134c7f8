"""Lists the folders of a model repository and their files, without opening one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.specs import WARM_UP_FOLDER
from mmsup.supervisor.config.config_error import InvalidValue, displayed
from mmsup.supervisor.config.yaml_file import NOT_REGULAR
from mmsup.supervisor.repository.artifact import engine_of

DIGEST_FILES: Final = 4096
VERSION_NAME: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
HINT_FOLDERS: Final = 64
"""Folders that are looked through for a hint: the controller's loop waits for it."""


@dataclass(frozen=True, slots=True)
class RepositoryRoot:
    """The folder of a repository when it was read: device number of its file system, and number of its folders."""

    device: int
    folder_count: int


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
    those of a folder `model.onnx` and the samples in `warmup`. Other folders are not included: the `__pycache__` of an
    imported model.py is no change of the model."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in _digested_folders(directory, versions):
        for name in sorted(file_names(folder))[:DIGEST_FILES]:
            path = os.path.join(folder, name)
            facts = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{facts.st_ino}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()


def _digested_folders(directory: str, versions: tuple[str, ...]) -> Iterator[str]:
    yield directory
    samples = os.path.join(directory, WARM_UP_FOLDER)
    if os.path.isdir(samples):
        yield samples
    for folder in (os.path.join(directory, each) for each in versions):
        if os.path.isdir(folder):  # a link that leads nowhere has nothing to digest
            yield folder
            inner = (os.path.join(folder, each) for each in folder_names(folder) if each.endswith(".onnx"))
            yield from (each for each in inner if os.path.isdir(each))


def layout_hint(directory: str) -> str:
    """What seems to be meant by a model's folder that has no version: where the models seem to be, or where its file
    belongs; empty if nothing is recognised."""
    repository, name = os.path.split(directory)
    with contextlib.suppress(OSError, InvalidValue):
        models = sorted(each for each in file_names(directory) if engine_of(each))
        if models and VERSION_NAME.fullmatch(name):
            home = displayed(os.path.dirname(repository), 4096)
            return f"{displayed(name)} looks like a version itself: give --model-repository {home}"
        if models:
            return f"{models[0]} belongs into {name}/1/"
        found = _repository_below(directory)
        if found:
            return f"the models seem to be in {displayed(found, 4096)}: give that as --model-repository"
    return ""


def missing_model_hint(repository: str) -> str:
    """What may be meant by a repository without a model in it: one of its files looks like one."""
    with contextlib.suppress(OSError, InvalidValue):
        models = sorted(each for each in file_names(repository) if engine_of(each))
        return f"; {models[0]} belongs into NAME/1/ of it, NAME being the model's" if models else ""
    return ""


def _repository_below(directory: str) -> str:
    """The nearest folder here or below that holds a model, which is a folder with a version; empty if none is found
    among the first HINT_FOLDERS."""
    waiting, count = [directory], 0
    while waiting and count < HINT_FOLDERS:
        folder = waiting.pop(0)
        inner = [os.path.join(folder, each) for each in folder_names(folder)[:HINT_FOLDERS]]
        inner = [each for each in inner if os.path.isdir(each) and not os.path.islink(each)]
        if any(VERSION_NAME.fullmatch(each) for model in inner for each in folder_names(model)):
            return folder
        waiting += inner
        count += len(inner) + 1
    return ""


def list_repository(root: str) -> tuple[RepositoryRoot, list[str]]:
    """A repository and the names of its folders, both from one descriptor, so that a mount meanwhile does not mix two
    file systems. InvalidValue if it cannot be read."""
    fd = -1
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        names = folder_names(fd)
        return RepositoryRoot(os.fstat(fd).st_dev, len(names)), names
    except OSError as error:
        raise InvalidValue(f"cannot be read: {error.strerror}") from None
    finally:
        if fd >= 0:
            os.close(fd)
