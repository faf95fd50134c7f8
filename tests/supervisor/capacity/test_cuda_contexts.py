"""What a context takes of a GPU: the least that was seen there, and a constant elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from mmsup.supervisor.capacity.cuda_contexts import CudaContexts
from mmsup.supervisor.capacity.footprint import CUDA_CONTEXT_BYTES
from mmsup.supervisor.capacity.footprint_store import FootprintStore

MIB = 1 << 20
NAMES = ("cuda:0", "GPU-a")


def test_the_least_difference_counts_for_each_name_of_its_device() -> None:
    contexts = CudaContexts({})
    assert contexts.of("cuda:0") == CUDA_CONTEXT_BYTES
    assert contexts.note(NAMES, 900 * MIB, 200 * MIB)
    assert contexts.note(NAMES, 812 * MIB, 200 * MIB)
    assert not contexts.note(NAMES, 900 * MIB, 200 * MIB)
    assert (contexts.of("cuda:0"), contexts.of("GPU-a")) == (612 * MIB, 612 * MIB)
    assert contexts.of("GPU-b") == CUDA_CONTEXT_BYTES


def test_what_is_no_context_is_not_taken_for_one() -> None:
    contexts = CudaContexts({})
    assert not contexts.note(NAMES, 700 * MIB, 0), "its engine says nothing"
    assert not contexts.note(NAMES, 700 * MIB, 690 * MIB), "the figures are of different moments"
    assert not contexts.by_device


def test_contexts_outlive_a_restart_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "footprints.json"
    store = FootprintStore(path)
    store.contexts.note(NAMES, 812 * MIB, 200 * MIB)
    store.write(store.contents())
    assert FootprintStore(path).contexts.of("GPU-a") == 612 * MIB
    path.write_text(json.dumps({"format": 1, "cuda_contexts": {"cuda:0": -1, "cuda:1": "x", "cuda:2": 5}}))
    assert FootprintStore(path).contexts.by_device == {"cuda:2": 5}
