"""Something that goes on beside what is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work` runs in a thread, and ends when the event is set that it is given: when the block is left."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name="meanwhile")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
