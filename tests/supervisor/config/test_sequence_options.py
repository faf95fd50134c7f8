"""The option `sequences`, and `sequence_batching` of Triton's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from mmsup.ipc.specs import SequenceBatching, SequenceControl, SequenceState
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.sequence_options import from_triton, parse_sequences, sequences_spec

Json = dict[str, Any]


def control(name: str, kind: str, **values: Any) -> Json:  # of a control
    return {"name": name, "control": [{"kind": f"CONTROL_SEQUENCE_{kind}", **values}]}


STATE: Json = {"input_name": "S", "output_name": "T", "data_type": "TYPE_FP32", "dims": [-1]}


def test_an_empty_configuration_is_direct_with_an_idle_time_of_one_second() -> None:
    assert sequences_spec(from_triton({})) == SequenceBatching()
    assert sequences_spec(parse_sequences(True)) == SequenceBatching()  # noqa: FBT003 - as in YAML


def test_all_that_triton_names_is_taken() -> None:
    config = {
        "max_sequence_idle_microseconds": 2_500_000,
        "oldest": {"max_candidate_sequences": 9, "preferred_batch_size": [4, 2], "max_queue_delay_microseconds": 300},
        "control_input": [
            control("A", "START", fp32_false_true=[0, 1]),
            control("B", "READY", int32_false_true=[-1, 2]),
            control("C", "END", bool_false_true=[False, True]),
            control("D", "CORRID", data_type="TYPE_STRING"),
        ],
        "state": [{**STATE, "initial_state": [{"data_type": "TYPE_FP32", "dims": [3], "data_file": "zero.bin"}]}],
    }
    assert sequences_spec(from_triton(config)) == SequenceBatching(
        "oldest",
        9,
        2.5,
        300e-6,
        preferred=(2, 4),
        controls=(
            SequenceControl("A", "start", "FP32"),
            SequenceControl("B", "ready", "INT32", -1, 2),
            SequenceControl("C", "end", "BOOL"),
            SequenceControl("D", "id", "BYTES", 0, 0),
        ),
        states=(SequenceState("S", "T", "FP32", (-1,), (3,), "zero.bin"),),
    )


def test_direct_has_a_utilization() -> None:
    config = {"direct": {"max_queue_delay_microseconds": 1000, "minimum_slot_utilization": 0.5}}
    assert sequences_spec(from_triton(config)) == SequenceBatching(delay_s=0.001, utilization=0.5)


@pytest.mark.parametrize(
    ("config", "key", "text"),
    [
        ({"iterative_sequence": True}, "iterative_sequence", "not supported"),
        ({"direct": {"minimum_slot_utilization": 2}}, "direct.minimum_slot_utilization", "between 0 and 1"),
        ({"oldest": {"max_candidate_sequences": -1}}, "oldest.max_candidate_sequences", "between 0"),
        ({"oldest": {"preferred_batch_size": [0]}}, "oldest.preferred_batch_size", "not positive"),
        ({"control_input": [{"name": "A"}]}, "control_input[0].control", "exactly one"),
        ({"control_input": [control("A", "START")]}, "control_input[0].control", "two values"),
        ({"control_input": [control("A", "CORRID", data_type="TYPE_FP32")]}, "control_input[0].control", "data_type"),
        (
            {"control_input": [control(name, "END", int32_false_true=[0, 1]) for name in "AB"]},
            "control_input[1].control",
            "another input",
        ),
        ({"state": [{**STATE, "dims": [0]}]}, "state[0].dims", "positive"),
        ({"state": [{**STATE, "input_name": ""}]}, "state[0]", "input_name"),
        ({"state": [STATE, STATE]}, "", 'the name "S"'),
        (
            {"state": [{**STATE, "initial_state": [{"data_type": "TYPE_INT32", "dims": [1], "zero_data": True}]}]},
            "state[0].initial_state.data_type",
            "not that of its state",
        ),
        (
            {"state": [{**STATE, "initial_state": [{"data_type": "TYPE_FP32", "dims": [1, 2], "zero_data": True}]}]},
            "state[0].initial_state.dims",
            "does not fit",
        ),
        (
            {"state": [{**STATE, "initial_state": [{"data_type": "TYPE_FP32", "dims": [1], "data_file": "../x"}]}]},
            "state[0].initial_state.data_file",
            "",
        ),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_field(config: Json, key: str, text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        from_triton(config)
    assert any(found == key and text in said for found, said in caught.value.problems), caught.value.problems


def test_the_option_of_yaml_is_checked() -> None:
    given = {"strategy": "oldest", "slots": 3, "idle": "90s", "delay": "1ms", "preferred": [2]}
    assert sequences_spec(parse_sequences(given)) == SequenceBatching("oldest", 3, 90.0, 0.001, preferred=(2,))
    for wrong in ({"strategy": "newest"}, {"slots": 0}, {"idle": "8d"}, {"sloths": 1}, 5):
        with pytest.raises(InvalidValue):
            parse_sequences(wrong)
