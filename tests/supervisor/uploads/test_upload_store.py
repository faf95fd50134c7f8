"""The folder of uploaded models: whole or not there, within its bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmsup.ipc.errors import CallerError, ServerError
from mmsup.ipc.messages.uploads import PIECE_BYTES, UploadedFiles, pack_files
from mmsup.supervisor.uploads.upload_store import UploadStore


@contextmanager
def upload(**files: bytes) -> Iterator[UploadedFiles]:
    """`model_onnx` is the file 1/model.onnx."""
    packed = asyncio.run(pack_files({f"1/{name.replace('_', '.')}": data for name, data in files.items()}))
    yield packed
    os.close(packed.fd)


def files_of(store: UploadStore) -> dict[str, bytes]:
    root = store.directory
    return {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()}


def test_a_model_is_there_when_it_is_put_and_gone_when_it_is_removed(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    large = os.urandom(PIECE_BYTES + 7)
    with upload(model_onnx=large, labels_txt=b"a\n") as sent:
        store.write("m", "max_batch_size: 8\n", sent)
    assert not store.holds("m")
    store.put("m")
    store.keep("m")
    assert store.holds("m")
    assert files_of(store) == {
        "m/config.pbtxt": b"max_batch_size: 8\n",
        "m/1/model.onnx": large,
        "m/1/labels.txt": b"a\n",
    }
    assert (store.directory.stat().st_mode & 0o777, (store.directory / "m").stat().st_mode & 0o777) == (0o700, 0o700)
    store.remove("m")
    assert files_of(store) == {}


def test_a_content_that_is_not_right_gives_its_place_back(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    for content, is_right in ((b"old", True), (b"new", False)):
        with upload(model_onnx=content) as sent:
            store.write("m", "", sent)
        store.put("m")
        if is_right:
            store.keep("m")
        else:
            assert store.undo("m")
    assert files_of(store)["m/1/model.onnx"] == b"old"
    with upload(model_onnx=b"x") as sent:
        store.write("n", "", sent)
    store.put("n")
    assert not store.undo("n")
    assert not store.holds("n")


def test_all_models_together_are_bounded_and_the_one_that_is_replaced_does_not_count(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 100)
    for content in (b"x" * 60, b"y" * 70):
        with upload(model_onnx=content) as sent:
            store.write("m", "", sent)
        store.put("m")
        store.keep("m")
    says = "40 bytes exceed what uploaded models may take: 70 of 100 bytes"
    with upload(model_onnx=b"z" * 40) as sent, pytest.raises(CallerError, match=says):
        store.write("n", "", sent)
    assert [each.name for each in store.directory.iterdir()] == ["m"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    with upload(model_onnx=b"x") as sent:
        longer = UploadedFiles(sent.fd, {"1/model.onnx": 2})
        with pytest.raises(ServerError, match="failed to load 'm': the files cannot be kept"):
            store.write("m", "", longer)
    assert list(store.directory.iterdir()) == []


def test_a_next_server_finds_what_was_loaded_and_nothing_that_was_unfinished(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    with upload(model_onnx=b"x") as sent:
        store.write("m", "", sent)
        store.put("m")
        store.write("n", "", sent)
    assert {each.name for each in store.directory.iterdir()} == {"m", ".n.new"}
    again = UploadStore(tmp_path / "uploads", 1 << 30)
    assert [each.name for each in again.directory.iterdir()] == ["m"]


def put(store: UploadStore, content: bytes) -> None:
    with upload(model_onnx=content) as sent:
        store.write("m", "", sent)
    store.put("m")


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_controller_that_ended_before_the_new_content_was_right_leaves_the_old_one(
    tmp_path: Path, is_in_place: bool
) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    put(store, b"old")
    store.keep("m")
    put(store, b"new")
    if not is_in_place:  # it ended between the two renames
        (store.directory / "m").rename(store.directory / ".m.new")
    again = UploadStore(tmp_path / "uploads", 1 << 30)
    assert files_of(again) == {"m/config.pbtxt": b"", "m/1/model.onnx": b"old"}


def test_a_model_that_is_removed_while_it_is_replaced_does_not_come_back(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    put(store, b"old")
    store.keep("m")
    put(store, b"new")
    store.remove("m")
    assert not store.undo("m")
    assert list(store.directory.iterdir()) == []


def test_what_cannot_take_its_place_leaves_what_was_there(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "uploads", 1 << 30)
    put(store, b"old")
    store.keep("m")
    with pytest.raises(ServerError, match="failed to load 'm': the files cannot be kept: No such file"):
        store.put("m")  # nothing was written
    assert files_of(store)["m/1/model.onnx"] == b"old"
