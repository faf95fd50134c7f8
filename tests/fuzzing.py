"""A small mutation fuzzer: inputs made of a corpus by random changes, for code that must take any bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

LENGTHS = (b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\0\0\x40\x01", b"\x7f\xff\xff\xff")
"""Bytes that stand for lengths at their limits."""
GROWTH_BYTES = 1 << 16


def mutations(corpus: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Without end: inputs of the corpus with one to six changes each."""
    rng = random.Random(seed)
    while True:
        made = bytearray(rng.choice(corpus))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(made) + 1)
            change = rng.randrange(6)
            if change == 0 and at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            elif change == 1:
                made[at:at] = rng.choice(LENGTHS)
            elif change == 2:
                del made[at : at + rng.randint(1, 8)]
            elif change == 3 and len(made) < GROWTH_BYTES:
                end = min(len(made), at + rng.randint(1, 64))
                made[at:at] = made[at:end]
            elif change == 4:
                other = rng.choice(corpus)
                made[at:] = other[rng.randrange(len(other) + 1) :]
            elif at < len(made):
                made[at] = rng.randrange(256)
        yield bytes(made)


def fuzz(target: Callable[[bytes], None], corpus: Sequence[bytes], seed: int, executions: int, limit_s: float) -> int:
    """Run `target`, which raises nothing, on the corpus and so many mutations of it, or as many as the time allows; how
    many there were. The input of one that raises is printed."""
    end_s = time.monotonic() + limit_s
    count = 0
    made = mutations(corpus, seed)
    while count < executions and time.monotonic() < end_s:
        data = corpus[count] if count < len(corpus) else next(made)
        try:
            target(data)
        except BaseException:
            print(f"seed {seed}, execution {count}: {data.hex()}")
            raise
        count += 1
    return count
