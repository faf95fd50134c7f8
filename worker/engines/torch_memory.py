"""Device memory that torch holds in a process whose model may use it: torch is never imported for one that does not."""

from __future__ import annotations

import sys


def free_cache() -> None:
    """Give back what torch's allocator holds and does not use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reserved_bytes() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved())
