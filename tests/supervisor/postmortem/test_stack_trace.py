from __future__ import annotations

import random

import pytest

from mmsup.supervisor.postmortem import stack_trace

CRASH = """Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/models/m/1/model.py", line 25 in harm
  File "/opt/mmsup/worker/loop.py", line 86 in run

Extension modules: numpy.linalg (total: 1)
"""
DUMP = """Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/models/m/1/model.py", line 47 in infer
  File "/opt/mmsup/worker/loop.py", line 86 in run

Thread 0x00007f0000000003 (most recent call first):
  File "/models/m/1/model.py", line 9 in helper
"""


def test_a_crash_has_its_error_innermost_frame_and_model_frame() -> None:
    read = stack_trace.parse(CRASH)
    assert read.fatal == "Segmentation fault"
    inner = read.innermost()
    assert inner is not None
    assert (inner.file.rpartition("/")[2], inner.line, inner.function) == ("__init__.py", 519, "string_at")
    assert read.model_frame("/models/m/1") == stack_trace.Frame("/models/m/1/model.py", 25, "harm")
    assert len(read.frames) == 3


def test_of_all_threads_the_current_one_is_used() -> None:
    read = stack_trace.parse(DUMP)
    assert (read.fatal, len(read.threads), read.current) == ("", 3, 1)
    assert (
        read.innermost() == read.model_frame("/models/m/1/") == stack_trace.Frame("/models/m/1/model.py", 47, "infer")
    )


def test_the_model_frame_may_be_in_another_thread() -> None:
    text = DUMP.replace('/models/m/1/model.py", line 47', '/lib/x.py", line 47')
    assert stack_trace.parse(text).model_frame("/models/m/1") == stack_trace.Frame("/models/m/1/model.py", 9, "helper")
    assert stack_trace.parse(text).model_frame("/models/m/11") is None


def test_a_complete_dump_ends_with_the_main_thread() -> None:
    bottom = '  File "<frozen runpy>", line 198 in _run_module_as_main\n'
    assert stack_trace.is_complete(DUMP + bottom)
    assert not stack_trace.is_complete(DUMP)
    assert not stack_trace.is_complete(DUMP + bottom[:-1])
    assert not stack_trace.is_complete("")


def test_without_a_current_thread_it_is_the_last() -> None:
    assert stack_trace.parse(DUMP.replace("Current thread", "Thread")).current == 2


EARLIER = DUMP.replace("infer", "earlier")


@pytest.mark.parametrize(
    ("text", "was_requested", "of_death"),
    [
        (CRASH, False, CRASH),
        (DUMP, True, DUMP),
        (DUMP, False, ""),
        (EARLIER + CRASH, False, CRASH),
        (EARLIER + EARLIER + DUMP, True, DUMP),
        (EARLIER + DUMP, False, ""),
        ("what a model wrote\n", False, "what a model wrote\n"),
        ("", True, ""),
    ],
)
def test_of_several_dumps_only_the_one_of_the_death_counts(text: str, was_requested: bool, of_death: str) -> None:
    assert stack_trace.of_death(text, was_requested=was_requested) == of_death


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ([], ""),
        (["loaded", *DUMP.splitlines()], "loaded"),
        ([*DUMP.splitlines(), "served"], "served"),
        (['  File "x.py", line 3, in load', "ValueError"], "ValueError"),
        (DUMP.splitlines(), ""),
    ],
)
def test_the_last_words_of_an_output_are_no_stack_that_somebody_asked_for(output: list[str], words: str) -> None:
    assert stack_trace.last_words(output) == words


@pytest.mark.parametrize(
    ("text", "is_dump"),
    [
        (CRASH, False),
        (DUMP, True),
        ("\nCurrent thread 0x1 (most recent call first):", True),
        ("", False),
        ("x", False),
    ],
)
def test_a_dump_is_distinguished_from_a_crash(text: str, is_dump: bool) -> None:
    assert stack_trace.is_requested_dump(text) == is_dump


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CRASH, 'Segmentation fault, File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at'),
        (DUMP, 'a stack, File "/models/m/1/model.py", line 47 in infer'),
        ("Fatal Python error: Aborted\n", "Aborted"),
        ("what a model wrote\nthere", "what a model wrote"),
        ("", ""),
        ("\n", ""),
    ],
)
def test_the_summary_is_one_line(text: str, line: str) -> None:
    assert stack_trace.summary(text) == line


def test_any_text_is_parsed_and_bounded() -> None:
    rng = random.Random(7)
    lines = [*CRASH.splitlines(), *DUMP.splitlines(), "  File", '  File "x", line 99999999999999999999 in y', "\0"]
    for _ in range(300):
        text = "\n".join(rng.choice(lines)[: rng.randrange(80)] for _ in range(rng.randrange(30)))
        read = stack_trace.parse(text)
        assert not read.threads or 0 <= read.current < len(read.threads)
    frames = '  File "x", line 1 in y\n'
    many = stack_trace.parse(("Thread 0x1 (most recent call first):\n" + frames * 200) * 200)
    assert len(many.threads) <= stack_trace.MAX_THREADS + 1
    assert len(many.threads[0]) == stack_trace.MAX_FRAMES
