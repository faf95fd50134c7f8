"""An upload beside another load of the same model."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.uploads import pack_files
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.uploads.model_uploads import ModelUploads
from mmsup.supervisor.uploads.upload_store import UploadStore


def test_a_load_of_the_content_before_is_not_taken_for_that_of_the_new_one(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    context: Any = SimpleNamespace(settings=Settings((), str(tmp_path), str(tmp_path)))
    loader: Any = SimpleNamespace(pending={"m": object()})
    watcher: Any = None
    sent = asyncio.run(pack_files({"1/model.onnx": b"new"}))
    try:
        with pytest.raises(CallerError, match="failed to load 'm': it is being loaded from another content") as found:
            asyncio.run(ModelUploads(store, context, loader, watcher).load("m", "{}", sent, lambda _: None))
    finally:
        os.close(sent.fd)
    assert found.value.code == "conflict"
    assert list(store.directory.iterdir()) == []


@pytest.mark.parametrize("name", ["./../kept", "../kept", "a/b", "..", "", ".hidden"])
def test_a_name_that_leads_out_of_the_folder_of_uploads_is_refused(name: str, tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    (tmp_path / "kept").mkdir()
    context: Any = SimpleNamespace(settings=Settings((), str(tmp_path), str(tmp_path)))
    loader: Any = SimpleNamespace(pending={})
    watcher: Any = None
    sent = asyncio.run(pack_files({"1/model.onnx": b"new"}))
    try:
        with pytest.raises(CallerError, match=r"failed to load .*: a name is letters, digits") as found:
            asyncio.run(ModelUploads(store, context, loader, watcher).load(name, "{}", sent, lambda _: None))
    finally:
        os.close(sent.fd)
    assert found.value.code == "bad_request"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["kept", "uploads"]
