"""Files of torch: whether one is TorchScript, a program of torch.export, or a pickled checkpoint, and is whole.

All are zip archives, of which the central directory at the end is read. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from typing import Final

from mmsup.supervisor.config.config_error import InvalidValue

_ZIP_HEADS: Final = (b"PK\x03\x04", b"PK\x05\x06")
_PICKLE_HEAD: Final = b"\x80"
"""Of a checkpoint as torch wrote it before version 1.6."""
_CHECKPOINT: Final = (
    "is a pickled checkpoint (torch.save): weights without the code that uses them, and a pickle may run any code. "
    "Export the model by torch.export.save to model.pt2 or torch.jit.save to model.pt, or write the weights by "
    "safetensors.torch.save_file to model.safetensors, with a class Model in model.py beside it"
)


def check_torchscript(path: str) -> None:
    """InvalidValue unless the file is a whole archive of torch.jit.save."""
    names = _names(path)
    if _has(names, "constants.pkl"):
        return
    if _is_exported(names):
        raise InvalidValue("is a program of torch.export.save: name it model.pt2")
    raise InvalidValue(_CHECKPOINT if _has(names, "data.pkl") else "is no TorchScript, which torch.jit.save writes")


def check_exported(path: str) -> None:
    """InvalidValue unless the file is a whole archive of torch.export.save."""
    names = _names(path)
    if _is_exported(names):
        return
    if _has(names, "constants.pkl"):
        raise InvalidValue("is TorchScript: name it model.pt")
    raise InvalidValue(_CHECKPOINT if _has(names, "data.pkl") else "is no program, which torch.export.save writes")


def _is_exported(names: list[str]) -> bool:
    return any("/models/" in f"/{each}" or each.endswith("serialized_exported_program.json") for each in names)


def _has(names: list[str], name: str) -> bool:
    """Whether it is in the archive, at its top or in its one folder."""
    return any(each.rpartition("/")[2] == name and each.count("/") <= 1 for each in names)


def _names(path: str) -> list[str]:
    """Names in the archive; InvalidValue if it is none, or cut."""
    with open(path, "rb") as file:
        head = file.read(4)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        pass
    if head in _ZIP_HEADS:
        raise InvalidValue("is cut short: the directory at the end of the archive is missing")
    if head.startswith(_PICKLE_HEAD):
        raise InvalidValue(_CHECKPOINT)
    raise InvalidValue("is no file of torch: neither an archive nor a checkpoint")
