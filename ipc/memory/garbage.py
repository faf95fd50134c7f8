"""Python's garbage collector in a process that has started: what lives by then is not looked at again."""

from __future__ import annotations

import gc


def freeze() -> None:
    """Collect, and leave what is left out of all later collections."""
    gc.collect()
    gc.freeze()


def freeze_and_disable() -> None:
    """As `freeze`; from then on only explicit collections run.

    For workers and zygotes: a collection writes to the header of each object that it looks at, so one in a forked
    process would copy every page that it shares, and one that starts by itself may fall into the middle of a run.
    """
    freeze()
    gc.disable()
