from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.capacity import footprint
from mmsup.supervisor.capacity.footprint import (
    CUDA_CONTEXT_BYTES,
    ENGINE_BYTES,
    FORKED_BYTES,
    Footprint,
    Need,
    gpu_need,
    host_need,
)

SPEC = ModelSpec("m", "1", "/d", "f", "ort", "p")
MIB = 1 << 20


def test_a_load_needs_the_most_that_the_last_one_held_and_at_least_what_stayed() -> None:
    assert host_need(SPEC, Footprint(300, 200, 900), 5) == Need(300, 200)
    assert host_need(SPEC, Footprint(100, 200), 5) == Need(200, 200)
    gpu = replace(SPEC, device="cuda")
    assert gpu_need(gpu, Footprint(gpu_load_peak_bytes=7, gpu_settled_bytes=5), 5) == Need(7, 5)


def test_until_it_is_measured_a_need_is_guessed_from_the_files_within_the_cap_of_the_model() -> None:
    found = host_need(SPEC, None, 100 * MIB)
    assert (found.needed_bytes, found.is_measured) == (ENGINE_BYTES["ort"] + 150 * MIB, False)
    assert host_need(replace(SPEC, memory_bytes=64 * MIB), None, 100 * MIB).needed_bytes == 64 * MIB
    python_class = replace(SPEC, engine="custom")
    assert host_need(python_class, None, 0).needed_bytes == ENGINE_BYTES["custom"]
    assert host_need(replace(python_class, imports="torch"), None, 0).needed_bytes == ENGINE_BYTES["pytorch"]
    assert gpu_need(SPEC, None, 100 * MIB) == Need(0)
    assert gpu_need(replace(SPEC, device="cuda"), None, 0).needed_bytes == CUDA_CONTEXT_BYTES
    assert gpu_need(replace(SPEC, device="cuda", gpu_memory_bytes=3), None, 100).needed_bytes == 3


@pytest.mark.parametrize(
    ("later", "near"), [(Footprint(104, 104), True), (Footprint(106, 100), False), (Footprint(), False)]
)
def test_measurements_that_hardly_differ_are_the_same(later: Footprint, near: bool) -> None:
    assert Footprint(100, 100).is_near(later) is near


def test_a_later_load_corrects_an_earlier_one_and_the_higher_peak_of_service_stays() -> None:
    first = Footprint(300, 200, 900, 30, 20, 90, 2.0)
    assert first.followed_by(Footprint(100, 80, 400, load_s=1.0)) == Footprint(100, 80, 900, 30, 20, 90, 1.0)


def test_the_files_of_a_version_are_counted_with_those_in_its_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "inner" / "b").write_bytes(b"x" * 5)
    assert footprint.artifact_bytes(str(tmp_path)) == 15
    assert footprint.artifact_bytes(str(tmp_path / "none")) == 0


@pytest.mark.parametrize(("serving_mib", "needed_mib"), [(0, 50), (52, 52), (55, 55), (500, 55)])
def test_what_first_requests_take_is_needed_and_what_leaks_is_not(serving_mib: int, needed_mib: int) -> None:
    measured = Footprint(40 << 20, 50 << 20, serving_mib << 20)
    assert host_need(SPEC, measured, 0) == Need(needed_mib << 20, 50 << 20)


def test_what_was_measured_of_the_other_way_to_start_is_a_guess() -> None:
    executed = Footprint(150 << 20, 150 << 20)
    assert host_need(SPEC, executed, 0, is_forked=False).is_measured
    forked = host_need(SPEC, executed, 0, is_forked=True)
    assert (forked.needed_bytes, forked.is_measured) == (FORKED_BYTES, False)
