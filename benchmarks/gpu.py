"""What one GPU does to the processes that share it, those of a whole server among them; four minutes on an H100.

    python benchmarks/gpu.py [--only contexts,copies] [--markdown FILE]

No setting of the device is changed. Sleep is tried last: the driver's checkpoint may hang.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import machine
from table import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from device import caps, contexts, copies, held, release, served, sleep

Rows = list[list[str]]
Part = tuple[str, Sequence[str], Callable[[], Rows]]


def parts(card: held.GpuCard) -> dict[str, list[Part]]:
    """What can be asked for, each with its tables."""
    return {
        "contexts": [("What a context takes", contexts.HEADS, lambda: contexts.rows(card))],
        "release": [("When memory of the dead is back", release.HEADS, lambda: release.rows(card))],
        "caps": [("What a share holds", caps.HEADS, lambda: caps.rows(card))],
        "served": [("A whole server", served.HEADS, lambda: served.rows() + served.measure_alone())],
        "copies": [
            ("Registering memory of a gateway", copies.REGISTER_HEADS, copies.registered),
            ("Copies", copies.COPY_HEADS, copies.copied),
            ("A batch", copies.BATCH_HEADS, copies.batched),
        ],
        "sleep": [("Sleep and wake", sleep.HEADS, lambda: sleep.rows(card))],
    }


def tried(part: Part) -> str:
    """A part as a section; what went wrong, if anything did: the others are wanted all the same."""
    title, heads, rows = part
    try:
        body = table(heads, rows())
    except Exception as error:  # noqa: BLE001 - a device can fail in ways that have no common name
        traceback.print_exc()
        body = f"Not measured: {type(error).__name__}: {error}"
    text = f"## {title}\n\n{body}\n"
    print(text, flush=True)
    return text


def main() -> None:
    """As the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some of contexts, release, caps, served, copies, sleep")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    asked = parser.parse_args()
    try:
        card = held.GpuCard()
    except Exception as error:  # noqa: BLE001 - no module, no driver, no card
        sys.exit(f"there is no GPU that NVML shows: {error}")
    offered = parts(card)
    chosen = asked.only.split(",") if asked.only else list(offered)
    if unknown := [each for each in chosen if each not in offered]:
        parser.error(f"there is no {unknown[0]!r}")
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    facts = machine.describe_machine() | {"GPU": card.name, "driver": card.driver, "command": command}
    head = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"
    print(head, flush=True)
    sections = [head, *(tried(each) for name in chosen for each in offered[name])]
    if asked.markdown:
        asked.markdown.write_text("# What one GPU does\n\nWritten by `benchmarks/gpu.py`.\n\n" + "\n".join(sections))


if __name__ == "__main__":
    main()
