"""Loads a model of files that a client has sent, and removes these when it is unloaded.

One upload at a time. If the new content cannot be loaded, the one before stays, on disk and in service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.messages.uploads import UploadedFiles
from mmsup.supervisor.config.validators import NAME
from mmsup.supervisor.models.loader import LoadContext, ModelLoader
from mmsup.supervisor.models.repository_watcher import RepositoryWatcher
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.uploads.upload_config import upload_config
from mmsup.supervisor.uploads.upload_store import UploadStore

T = TypeVar("T")
BAD_NAME: Final = "a name is letters, digits, '.', '_' and '-', of which the first is a letter or a digit"


class ModelUploads:
    def __init__(
        self, store: UploadStore | None, context: LoadContext, loader: ModelLoader, watcher: RepositoryWatcher
    ) -> None:
        """`store`: None where files may not be sent."""
        self._store = store
        self._context = context
        self._loader = loader
        self._watcher = watcher
        self._lock = asyncio.Lock()

    async def load(self, name: str, config: str, upload: UploadedFiles, on_progress: Callable[[str], None]) -> Any:
        """As the loader's `load`; MmsupError if the files cannot be kept, or the model is another repository's."""
        store = self._store
        if store is None:
            raise CallerError("forbidden", f"failed to load '{name}': files may not be sent to this server", model=name)
        if not NAME.fullmatch(name):  # it becomes that of a folder
            raise CallerError("bad_request", f"failed to load '{name:.128}': {BAD_NAME}")
        pbtxt = upload_config(name, config, may_hold_code=self._context.settings.allow_code_uploads)
        async with self._lock:
            if not store.holds(name) and scanner.scan_model(self._context.settings, name) is not None:
                text = f"failed to load '{name}': a model repository has a model of this name: send it by another one"
                raise CallerError("conflict", text, model=name, retryable=False)
            await _in_thread(lambda: store.write(name, pbtxt, upload))
            if name in self._loader.pending:  # of what is there now: its outcome would be taken for that of the new one
                store.drop(name)
                raise CallerError("conflict", f"failed to load '{name}': it is being loaded from another content")
            store.put(name)
            size = sum(upload.sizes.values())
            text = f"{len(upload.sizes)} files of {size} bytes were sent by a client"
            self._context.event_log.record("model_uploaded", text, model=name)
            try:
                self._check(name)
                loaded = await self._loader.load(name, "", on_progress)
            except BaseException:
                if not store.undo(name):
                    await self._forget(name)
                raise
            store.keep(name)
            return loaded

    async def unload(self, name: str) -> Any:
        """As the loader's `unload`; the files of an uploaded model are removed."""
        unloaded = await self._loader.unload(name)
        if self._store is not None and self._store.holds(name):
            self._store.remove(name)
            await self._watcher.remove(name)
        return unloaded

    def _check(self, name: str) -> None:
        """CallerError if what was sent is no model."""
        entry = scanner.scan_model(self._context.settings, name)
        if entry is None or entry.errors:
            reason = entry.public_reason if entry is not None else "its name cannot be one"
            raise CallerError("bad_request", f"failed to load '{name}': {reason}", model=name)

    async def _forget(self, name: str) -> None:
        """A model that could not be loaded, and was not there before, is as if it had never been sent."""
        with contextlib.suppress(MmsupError):
            await self._loader.unload(name)
        await self._watcher.remove(name)


async def _in_thread(work: Callable[[], T]) -> T:
    """Its result; a slow disk must not stop the loop."""
    with ThreadPoolExecutor(1, "upload") as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
