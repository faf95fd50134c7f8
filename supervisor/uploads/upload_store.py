"""The folder of uploaded models: written whole or not at all, bounded in bytes and number. Blocks: for a thread.

    uploads/NAME/           a model as in any repository, with the config.pbtxt made of what the client sent
    uploads/.NAME.new/      one that is being written
    uploads/.NAME.old/      the one before, until the new one is ready
    uploads/.NAME.gone/     one that is being removed

Hidden folders that a controller finds at its start are of one that ended in the middle. They are removed, but for an
old one, which takes its place again: nobody knows whether the new one can be loaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from mmsup.ipc.errors import CallerError, ServerError
from mmsup.ipc.messages.uploads import PIECE_BYTES, UploadedFiles

MODELS_LIMIT: Final = 256
_OLD: Final = ".old"


class UploadStore:
    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Make the directory, and undo what an earlier controller left unfinished."""
        self.directory = directory
        self._limit_bytes = limit_bytes
        directory.mkdir(mode=0o700, exist_ok=True)
        for each in [each for each in directory.iterdir() if each.name.startswith(".")]:
            if each.suffix == _OLD:
                self.undo(each.stem.removeprefix("."))
            else:
                _remove(each)

    def holds(self, name: str) -> bool:
        return (self.directory / name).is_dir()

    def write(self, name: str, pbtxt: str, upload: UploadedFiles) -> None:
        """Write a model beside those that are there; MmsupError if there is no room for it, and nothing is left."""
        self._check_room(name, sum(upload.sizes.values()) + len(pbtxt))
        folder = self._new(name)
        _remove(folder)
        try:
            folder.mkdir(mode=0o700)
            (folder / "config.pbtxt").write_text(pbtxt)
            offset = 0
            for each, size in upload.sizes.items():
                version, _, file = each.partition("/")
                (folder / version).mkdir(mode=0o700, exist_ok=True)
                _copy(upload.fd, offset, size, folder / version / file)
                offset += size
        except OSError as error:
            _remove(folder)
            raise _unkept(name, error) from None

    def drop(self, name: str) -> None:
        """What was written is not wanted."""
        _remove(self._new(name))

    def put(self, name: str) -> None:
        """What was written takes the place of what is there; MmsupError if it cannot."""
        _remove(self._old(name))
        try:
            with contextlib.suppress(FileNotFoundError):
                (self.directory / name).rename(self._old(name))
            self._new(name).rename(self.directory / name)
        except OSError as error:
            self.undo(name)
            raise _unkept(name, error) from None

    def keep(self, name: str) -> None:
        """The new one is right: the one before is not needed any more."""
        self._discard(self._old(name))

    def undo(self, name: str) -> bool:
        """What there was before is in its place again; False if there was nothing."""
        self._discard(self.directory / name)
        with contextlib.suppress(FileNotFoundError):
            self._old(name).rename(self.directory / name)
            return True
        return False

    def remove(self, name: str) -> None:
        """Also the one before, which a load that is under way would put back."""
        self.keep(name)
        self._discard(self.directory / name)

    def _discard(self, folder: Path) -> None:
        """Remove it, at no moment of which a part of it stands in its place."""
        gone = self.directory / f".{folder.name.removeprefix('.')}.gone"
        _remove(gone)
        with contextlib.suppress(OSError):
            folder.rename(gone)
        _remove(gone)
        _remove(folder)  # if it could not be renamed

    def _new(self, name: str) -> Path:
        return self.directory / f".{name}.new"

    def _old(self, name: str) -> Path:
        return self.directory / f".{name}{_OLD}"

    def _check_room(self, name: str, size_bytes: int) -> None:
        others = [each for each in self.directory.iterdir() if each.name != name and not each.name.startswith(".")]
        held = sum(_size(file) for each in others for file in each.rglob("*"))
        if held + size_bytes > self._limit_bytes or len(others) >= MODELS_LIMIT:
            text = (
                f"failed to load '{name}': {size_bytes} bytes exceed what uploaded models may take: {held} of "
                f"{self._limit_bytes} bytes, and {len(others)} of {MODELS_LIMIT} models, are there; unload some"
            )
            raise CallerError("too_large", text, model=name)


def _size(path: Path) -> int:
    """0 for one that was removed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def _unkept(name: str, error: OSError) -> ServerError:
    return ServerError(
        "unavailable", f"failed to load '{name}': the files cannot be kept: {error.strerror}", model=name
    )


def _copy(source: int, offset: int, size: int, target: Path) -> None:
    """OSError also if the source has fewer bytes."""
    with target.open("xb") as file:
        end = offset + size
        while offset < end:
            data = os.pread(source, min(PIECE_BYTES, end - offset), offset)
            if not data:
                raise OSError(0, "they are cut off")
            file.write(data)
            offset += len(data)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
