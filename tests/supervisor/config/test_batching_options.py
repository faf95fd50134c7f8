"""What is said of waiting and sharing runs, in our words and in Triton's."""

from __future__ import annotations

import pytest

from mmsup.ipc.specs import Batching, ModelSpec, QueuePolicy
from mmsup.supervisor.config import batching_options, model_options
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.repository.config_pbtxt import read_pbtxt
from mmsup.supervisor.repository.model_config import interpret


def spec_of(text: str) -> dict[str, object]:
    """The fields of a spec that a config.pbtxt sets."""
    found = interpret(read_pbtxt(f"max_batch_size: 16 {text}", "m/config.pbtxt"), "m")
    assert found.errors == found.warnings == ()
    fields = model_options.spec_fields(found.options)
    del fields["max_batch_size"]
    return fields


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("dynamic_batching {}", {"batching": Batching()}),
        (
            "dynamic_batching { max_queue_delay_microseconds: 1500 preferred_batch_size: [8, 4] }",
            {"batching": Batching(delay_s=0.0015, preferred=(4, 8))},
        ),
        (
            "dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
            {"batching": Batching(), "priority_levels": 3, "priority": 2},
        ),
        ("dynamic_batching { preserve_ordering: true }", {"batching": Batching()}),
        (
            (
                "dynamic_batching { priority_levels: 2 default_priority_level: 1"
                " default_queue_policy { max_queue_size: 5 allow_timeout_override: true }"
                " priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 2000000}}}"
            ),
            {
                "batching": Batching(),
                "priority_levels": 2,
                "priority": 1,
                "queue_policies": (QueuePolicy(max_queue=5), QueuePolicy(2, timeout_s=2.0, delays=True)),
            },
        ),
    ],
)
def test_dynamic_batching_becomes_fields_of_the_spec(text: str, fields: dict[str, object]) -> None:
    assert spec_of(text) == fields


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("max_queue_delay_microseconds: 20000000", "max_queue_delay_microseconds", "more than 10 s"),
        ("preferred_batch_size: [4, 0]", "preferred_batch_size", "0 is not between"),
        ("priority_levels: 2", "default_priority_level", "0 is not between 1 and priority_levels, 2"),
        ("priority_levels: 2 default_priority_level: 3", "default_priority_level", "3 is not between"),
        ("default_priority_level: 1", "default_priority_level", "needs priority_levels"),
        ("priority_levels: 1000 default_priority_level: 1", "priority_levels", "more than 100"),
        ("priority_levels: 2 default_priority_level: 1 preserve_ordering: true", "preserve_ordering", "exclude"),
        ("priority_queue_policy { key: 1 value {} }", "priority_queue_policy", "1 is not between 1 and"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(text: str, key: str, words: str) -> None:
    (fault,) = interpret(read_pbtxt(f"dynamic_batching {{ {text} }}", "m/config.pbtxt"), "m").errors
    assert fault.place == f"m/config.pbtxt:1: dynamic_batching.{key}"
    assert words in fault.text


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        (7, "", "is no mapping"),
        ({"size": 4}, "size", "the nearest is max_size"),
        ({"delay": "1min"}, "delay", "nobody waits so long"),
        ({"preferred": []}, "preferred", "empty"),
        ({"preferred": [4, "x"]}, "preferred", "not a whole number"),
        ({"objective": 0}, "objective", "no time at all"),
        ({"max_size": 0}, "max_size", "not between"),
    ],
)
def test_a_wrong_member_of_batching_is_named(raw: object, key: str, words: str) -> None:
    with pytest.raises(InvalidValue) as wrong:
        batching_options.parse_batching(raw)
    ((place, text),) = wrong.value.problems
    assert place == key
    assert words in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "0 policies"),
        ([{"level": 1}, {"level": 1}], "two policies are for level 1"),
        ([{"action": "drop"}], "[0].action"),
        ([{"level": 101}], "[0].level"),
        ([7], "[0]: 7 is no policy"),
    ],
)
def test_wrong_policies_are_named_by_their_place(raw: object, words: str) -> None:
    with pytest.raises(InvalidValue) as wrong:
        batching_options.parse_queue_policies(raw)
    assert words in str(wrong.value)


def test_the_nearer_layer_adds_to_batching_what_the_farther_did_not_say() -> None:
    merged = model_options.merge({"batching": {"delay": 0.1, "max_size": 4}}, {"batching": {"delay": 0.2}})
    assert model_options.spec_fields(merged)["batching"] == Batching(4, 0.2)


def test_sizes_that_no_run_can_have_and_batching_without_a_batch_axis_are_found() -> None:
    said = {"batching": {"preferred": [4, 32], "max_size": 17}}
    assert batching_options.oversized_batches({**said, "max_batch_size": 16}) == [17, 32]
    assert batching_options.oversized_batches({**said, "max_batch_size": 32}) == []
    assert batching_options.has_no_effect(said)
    assert not batching_options.has_no_effect({**said, "max_batch_size": 1})
    assert not batching_options.has_no_effect({"batching": {}})


def test_a_spec_that_says_nothing_is_what_nothing_said_means() -> None:
    spec = ModelSpec("m", "1", "/d", "f", "ort", "p")
    assert (spec.batching, spec.queue_policies) == (
        batching_options.batching_spec({}),
        batching_options.policy_specs([]),
    )
