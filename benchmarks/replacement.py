"""How many requests of a sequence find their model loaded if so many fit at a time: by ideal LRU, by Belady's optimum
and by chance. Pure.

Every model is of the same size, and a request loads its model if that is not there: no policy may pass one by.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush

NEVER = 1 << 62


def lru_hits(models: Sequence[int], capacity: int, counted_from: int = 0) -> int:
    """Hits where the model that was asked longest ago makes room. Requests before `counted_from` fill the memory and
    are not counted."""
    loaded: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for place, model in enumerate(models):
        if model in loaded:
            loaded.move_to_end(model)
            hits += place >= counted_from
            continue
        if len(loaded) >= capacity:
            loaded.popitem(last=False)
        loaded[model] = None
    return hits


def belady_hits(models: Sequence[int], capacity: int, counted_from: int = 0) -> int:
    """Hits where the model whose next request is the farthest makes room: no policy has more (Belady, 1966)."""
    following = _next_requests(models)
    next_of: dict[int, int] = {}
    """Of each loaded model, the place of its next request."""
    farthest: list[tuple[int, int]] = []
    """(-place of the next request, model); entries that `next_of` contradicts are out of date."""
    hits = 0
    for place, model in enumerate(models):
        if model in next_of:
            hits += place >= counted_from
        elif len(next_of) >= capacity:
            _drop_farthest(next_of, farthest)
        next_of[model] = following[place]
        heappush(farthest, (-following[place], model))
    return hits


def random_hits(models: Sequence[int], capacity: int, counted_from: int = 0, seed: int = 0) -> int:
    """Hits where any loaded model, drawn by chance, makes room."""
    draw = random.Random(seed)
    loaded: list[int] = []
    present: set[int] = set()
    hits = 0
    for place, model in enumerate(models):
        if model in present:
            hits += place >= counted_from
            continue
        if len(loaded) < capacity:
            loaded.append(model)
        else:
            victim = draw.randrange(capacity)
            present.remove(loaded[victim])
            loaded[victim] = model
        present.add(model)
    return hits


def _next_requests(models: Sequence[int]) -> list[int]:
    """For each request the place of the next one to the same model."""
    following, seen = [NEVER] * len(models), dict[int, int]()
    for place in range(len(models) - 1, -1, -1):
        following[place] = seen.get(models[place], NEVER)
        seen[models[place]] = place
    return following


def _drop_farthest(next_of: dict[int, int], farthest: list[tuple[int, int]]) -> None:
    while True:
        place, model = heappop(farthest)
        if next_of.get(model) == -place:
            del next_of[model]
            return
