"""Parses the output of faulthandler: the fatal error, if there was one, and the frames of each thread. Pure.

    Fatal Python error: Segmentation fault               only of a fatal signal

    Thread 0x00007f… (most recent call first):           any number
      File "/models/m/1/model.py", line 12 in infer
    Current thread 0x00007f… (most recent call first):   `Stack` where there is one thread only
      File …

The text comes from a pipe that the worker can write to, so it may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FATAL_PREFIX: Final = "Fatal Python error: "
MAX_FRAMES: Final = 100
"""Of one thread; faulthandler writes no more."""
MAX_THREADS: Final = 100
_HEAD: Final = re.compile(r"(Current thread|Thread|Stack)(?: 0x[0-9a-f]+)?.*\(most recent call first\):")
_LAST_FRAME: Final = " in _run_module_as_main\n"
_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass(frozen=True, slots=True)
class Frame:
    file: str
    line: int
    function: str


@dataclass(frozen=True, slots=True)
class StackTrace:
    fatal: str
    """`Segmentation fault`; empty: a requested dump, no crash."""
    threads: tuple[tuple[Frame, ...], ...]
    """Innermost frame first."""
    current: int
    """Index of the thread that received the signal."""

    @property
    def frames(self) -> tuple[Frame, ...]:
        return self.threads[self.current] if self.threads else ()

    def innermost(self) -> Frame | None:
        return self.frames[0] if self.frames else None

    def model_frame(self, directory: str) -> Frame | None:
        """The innermost frame in the model's own code, which is below `directory`."""
        home = directory.rstrip("/") + "/"
        every = (self.frames, *self.threads)
        return next((each for frames in every for each in frames if each.file.startswith(home)), None)


def parse(text: str) -> StackTrace:
    """The stacks in a text; empty if there are none."""
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
    # No thread is marked as current: the main thread is written last.
    return StackTrace(
        fatal, tuple(tuple(each) for each in threads), current if current >= 0 else max(len(threads) - 1, 0)
    )


def of_death(text: str, *, was_requested: bool) -> str:
    """The last dump or crash in a text: somebody asked for what was there before, and the worker went on. A last dump
    that the server did not ask for is none of the death either."""
    lines = text.splitlines(keepends=True)
    begin = max((at for at in range(len(lines)) if _begins(lines, at)), default=0)
    last = "".join(lines[begin:])
    return "" if is_requested_dump(last) and not was_requested else last


def _begins(lines: list[str], at: int) -> bool:
    """Whether a line is the first one of a crash or of a dump. In a dump a blank line stands before each further
    thread, and in a crash before the only one."""
    is_head = at > 0 and _HEAD.match(lines[at]) is not None
    return lines[at].startswith(FATAL_PREFIX) or (is_head and bool(lines[at - 1].strip()))


def last_words(lines: Sequence[str]) -> str:
    """The last line of output that is no part of a stack dump; empty if there is none."""
    words = (each for each in reversed(lines) if each.strip() and not (_HEAD.match(each) or _FRAME.fullmatch(each)))
    return next(words, "")


def is_requested_dump(text: str) -> bool:
    """Whether the text begins like a requested dump, and not like a crash."""
    return bool(_HEAD.match(text.lstrip()))


def is_complete(text: str) -> bool:
    """Whether a dump is certainly complete: the main thread is written last, and its outermost frame runs the program.
    At most 100 frames of a thread are written, so a complete dump may not look so."""
    return text.endswith(_LAST_FRAME)


def summary(text: str) -> str:
    stack = parse(text)
    inner = stack.innermost()
    first = stack.fatal or ("a stack" if inner else text.strip().splitlines()[0].strip() if text.strip() else "")
    where = f'File "{inner.file}", line {inner.line} in {inner.function}' if inner else ""
    return ", ".join(filter(None, (first, where)))
