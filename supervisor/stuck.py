"""Whether another worker may take the place of one that does not die. Pure.

What the kernel holds keeps its memory, so both must fit. A model whose workers get stuck one after the other gets no
more than a few: the rest of the machine is not its to fill.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 3
"""Of one model, at a time."""


def is_replaced(need_bytes: int, available_bytes: int, of_model: int) -> bool:
    """`need_bytes`: what the one that does not die holds; `of_model`: how many such its model has, it included."""
    return of_model <= MOST and need_bytes <= available_bytes
