"""Which configurations of models can be in one co-location group."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from mmsup.ipc.specs import GROUP_KEYS, ModelSpec
from mmsup.supervisor.repository.group_rules import contradiction

ONE = ModelSpec("one", "1", "/models/one/1", "model.py", "custom", "python", group="g")
TWO = replace(ONE, name="two", directory="/models/two/1")


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("python", {"python": "/opt/python"}),
        ("env", {"env": {"A": "1"}}),
        ("device", {"device": "cuda"}),
        ("instances", {"instances": 2}),
        ("memory", {"memory_bytes": 1 << 30}),
        ("recycle_memory", {"recycle_memory_bytes": 1 << 30}),
        ("gpu_memory", {"gpu_memory_bytes": 1 << 30}),
    ],
)
def test_what_belongs_to_the_process_must_be_the_same_and_the_error_names_the_key(
    key: str, changed: dict[str, Any]
) -> None:
    error = contradiction([replace(TWO, **changed)], [ONE])
    assert error is not None
    assert error.place == f"two: {key}"
    assert "model 'one'" in error.text
    assert str(next(iter(changed.values()))) not in error.for_clients


def test_models_of_other_groups_and_of_none_may_be_as_they_like() -> None:
    other = replace(TWO, memory_bytes=1 << 30)
    assert contradiction([replace(other, group="h")], [ONE]) is None
    assert contradiction([replace(other, group="")], [ONE]) is None
    assert contradiction([other], [replace(ONE, group="")]) is None
    assert contradiction([other], []) is None
    assert contradiction([replace(ONE, version="2", memory_bytes=1 << 30)], [ONE]) is None  # of one model


def test_every_key_of_the_process_sets_a_field_of_the_specification() -> None:
    assert set(GROUP_KEYS.values()) <= {each.name for each in fields(ModelSpec)}
