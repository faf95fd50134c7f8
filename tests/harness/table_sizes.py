"""How much the tables of mmsup's objects hold, to see which grow."""

from __future__ import annotations

import gc
from collections import Counter, deque
from typing import Any


def table_sizes(root: object) -> Counter[str]:
    """The number of elements of all tables of mmsup's objects that can be reached from one, by class and attribute."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict | list | tuple | set | frozenset | deque):
            left += gc.get_referents(each)
        elif type(each).__module__.startswith("mmsup."):
            names = [*getattr(each, "__dict__", ()), *getattr(type(each), "__slots__", ())]
            for name in names:
                value = getattr(each, name, None)
                left.append(value)
                if isinstance(value, dict | list | set | deque):
                    found[f"{type(each).__name__}.{name}"] += len(value)
    return found
