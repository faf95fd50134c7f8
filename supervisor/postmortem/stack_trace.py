"""What faulthandler writes, read: the fatal error, if it was one, and the frames of each thread. Pure.

    Fatal Python error: Segmentation fault               only of a fatal signal

    Thread 0x00007f… (most recent call first):           any number
      File "/models/m/1/model.py", line 12 in infer
    Current thread 0x00007f… (most recent call first):   `Stack` where only one thread is told
      File …

It comes from a pipe that the worker holds, so it is the worker's own word: anything may stand there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

FATAL_PREFIX: Final = "Fatal Python error: "
MAX_FRAMES: Final = 100
"""Of one thread: as many as faulthandler writes."""
MAX_THREADS: Final = 100
_HEAD: Final = re.compile(r"(Current thread|Thread|Stack)(?: 0x[0-9a-f]+)?.*\(most recent call first\):")
_LAST_FRAME: Final = " in _run_module_as_main\n"
_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a thread stood."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({os.path.basename(self.file)}, line {self.line})"


@dataclass(frozen=True, slots=True)
class StackTrace:
    """All threads, and of which the text speaks first."""

    fatal: str
    """`Segmentation fault`; empty: nobody died, somebody asked."""
    threads: tuple[tuple[Frame, ...], ...]
    """Innermost frame first."""
    current: int
    """The thread that met the error or heard the question."""

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Of the current thread."""
        return self.threads[self.current] if self.threads else ()

    def innermost(self) -> Frame | None:
        """Where it stood."""
        return self.frames[0] if self.frames else None

    def model_frame(self, directory: str) -> Frame | None:
        """Where it stood in the model's own code, which lies below `directory`; also where libraries were called."""
        home = directory.rstrip("/") + "/"
        every = (self.frames, *self.threads)
        return next((each for frames in every for each in frames if each.file.startswith(home)), None)


def parse(text: str) -> StackTrace:
    """The stack that stands in this text; an empty one if none does."""
    fatal = ""
    threads: list[list[Frame]] = []
    current = -1
    for line in text.splitlines():
        if line.startswith(FATAL_PREFIX):
            fatal = fatal or line.removeprefix(FATAL_PREFIX).strip()[:100]
        elif head := _HEAD.match(line):
            threads.append([])
            current = current if head[1] == "Thread" else len(threads) - 1
        elif threads and (frame := _FRAME.fullmatch(line)) and len(threads[-1]) < MAX_FRAMES:
            threads[-1].append(Frame(frame[1], int(frame[2][:9]), frame[3]))
        if len(threads) > MAX_THREADS:
            break
    # Nobody is called the current one: the first thread of a process is written last.
    return StackTrace(
        fatal, tuple(tuple(each) for each in threads), current if current >= 0 else max(len(threads) - 1, 0)
    )


def is_requested_dump(text: str) -> bool:
    """Whether the text begins as the answer to somebody's question, and not as a crash."""
    return bool(_HEAD.match(text.lstrip()))


def is_complete(text: str) -> bool:
    """Whether it surely goes to its end: the main thread is told last, and at its bottom is what runs a program. Of a
    thread 100 frames are told at most, so one that is whole may not look so."""
    return text.endswith(_LAST_FRAME)


def summary(text: str) -> str:
    """What happened, and the innermost frame, in one line."""
    stack = parse(text)
    inner = stack.innermost()
    first = stack.fatal or ("a stack" if inner else text.strip().splitlines()[0].strip() if text.strip() else "")
    where = f'File "{inner.file}", line {inner.line} in {inner.function}' if inner else ""
    return ", ".join(filter(None, (first, where)))
