"""Runs work in a background thread during a measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work(stop)` in a thread during the block; `stop` is set at its end."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name="meanwhile")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
