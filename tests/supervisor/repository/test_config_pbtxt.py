from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsup.supervisor.repository.config_pbtxt import message_descriptor, read_json, read_pbtxt

FULL = """\
name: "bert"   # the folder
backend: 'onnx' "runtime"
max_batch_size: 8
input [
  { name: "A" data_type: TYPE_FP32 dims: [ -1,
    3 ] },
  { name: "B", data_type: TYPE_INT64; dims: 1 dims: 2 optional: true }
]
output { name: "C" data_type: 13 dims: [1] }
instance_group < count: 2 kind: KIND_GPU gpus: [0, 1] >
version_policy: { specific { versions: [1, 9223372036854775807] } }
parameters { key: "one" value { string_value: "1" } }
parameters: {
  key: "mmsup_memory"
  value: { string_value: "1GiB" } }
dynamic_batching { priority_queue_policy { key: 1 value { max_queue_size: 3 } } max_queue_delay_microseconds: 100 }
"""


def faults(text: str) -> list[str]:
    return [str(each) for each in read_pbtxt(text, "f").errors]


def test_a_configuration_is_read_as_it_was_said_and_nothing_else() -> None:
    said = read_pbtxt(FULL, "bert/config.pbtxt")
    assert said.errors == ()
    assert said.config == {
        "name": "bert",
        "backend": "onnxruntime",
        "max_batch_size": 8,
        "input": [
            {"name": "A", "data_type": "TYPE_FP32", "dims": [-1, 3]},
            {"name": "B", "data_type": "TYPE_INT64", "dims": [1, 2], "optional": True},
        ],
        "output": [{"name": "C", "data_type": "TYPE_STRING", "dims": [1]}],
        "instance_group": [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}],
        "version_policy": {"specific": {"versions": [1, 9223372036854775807]}},
        "parameters": {"mmsup_memory": {"string_value": "1GiB"}, "one": {"string_value": "1"}},
        "dynamic_batching": {
            "priority_queue_policy": {"1": {"max_queue_size": 3}},
            "max_queue_delay_microseconds": 100,
        },
    }


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("backend", 2),
        ("input[0].name", 5),
        ("input[0].dims[1]", 6),
        ("input[1].dims[1]", 7),
        ("output[0].data_type", 9),
        ("instance_group[0].kind", 10),
        ("version_policy.specific.versions", 11),
        ("parameters.mmsup_memory", 14),
        ("dynamic_batching", 16),
    ],
)
def test_each_key_knows_its_line(key: str, line: int) -> None:
    assert read_pbtxt(FULL, "f").source.place(key) == f"f:{line}: {key}"


def test_what_has_no_line_of_its_own_takes_the_line_of_what_it_stands_in() -> None:
    assert read_pbtxt(FULL, "f").source.place("input[1].reshape") == "f:7: input[1].reshape"
    assert read_pbtxt(FULL, "f").source.place("model_warmup") == "f: model_warmup"


def test_a_field_that_is_said_to_be_nothing_is_said() -> None:
    assert read_pbtxt("max_batch_size: 0", "f").config == {"max_batch_size": 0}
    assert read_pbtxt("", "f").config == {}


def test_unknown_keys_come_all_together_with_their_lines_and_the_nearest_known() -> None:
    text = (
        'max_batch_sise: 4\ninput { nam: "x" dims: 1 }\ninput { foo { a: [1, "2"] b: <c: -1> } }\noptimisation { x: 1 }'
    )
    assert faults(text) == [
        'f:1: max_batch_sise: "max_batch_sise" is not known; the nearest is max_batch_size',
        'f:2: input[0].nam: "nam" is not known; the nearest is name',
        'f:3: input[1].foo: "foo" is not known',
        'f:4: optimisation: "optimisation" is not known; the nearest is optimization',
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\n\ninput {", 3, "Expected"),
        ("\nname: 1", 2, "Expected string"),
        ("input { data_type: TYPE_FP33 }", 1, "TYPE_FP33"),
        ("name: 'a'\nname: 'b'", 2, 'multiple "name"'),
        ("max_batch_size: 99999999999", 1, "out of range"),
        ("version_policy { latest {} all {} }", 1, "another member"),
        ("[foo.bar]: 1", 1, "extensions"),
        ('name: "a', 1, "ending quote"),
        ("\0", 1, "identifier"),
    ],
)
def test_where_it_stops_to_be_one_the_fault_names_the_line(text: str, line: int, words: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith(f"f:{line}: ")
    assert words in fault
    assert "mmsup.config" not in fault
    assert fault.isprintable()


@pytest.mark.parametrize("text", ["input {" * 3000, "{" * 5000, "a" * 100_000, "a {" * 3000 + "}" * 3000, '"' * 9999])
def test_a_monstrous_text_is_a_short_fault(text: str) -> None:
    (fault,) = faults(text)
    assert len(fault) < 500


def test_whatever_is_written_is_a_configuration_or_a_fault_and_never_a_traceback() -> None:
    chance = random.Random(7)
    for _ in range(400):
        text = FULL
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(text))
            cut = at + chance.choice([0, 1, 1, 8])
            text = text[:at] + "".join(chance.choices("{}[]<>:,;\"'#\\ \n-0aé\0", k=chance.randrange(3))) + text[cut:]
        said = read_pbtxt(text, "f")
        assert said.config or said.errors or not text.strip()
        assert all(each.place.startswith("f") for each in said.errors)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ('{"max_batch_size": "16"}', {"max_batch_size": 16}),
        ('{"maxBatchSize": 16}', {"max_batch_size": 16}),
        ('{"input":[{"name":"x","data_type":"TYPE_BF16","dims":["-1",3]}]}', None),
        ("{}", {}),
    ],
)
def test_the_json_of_a_load_request_is_read_with_numbers_as_strings(text: str, config: dict[str, Any] | None) -> None:
    said = read_json(text, "config")
    assert said.errors == ()
    assert said.config == config or said.config["input"][0]["dims"] == [-1, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        '{"x":1}',
        '{"input":3}',
        '{"input":[{"data_type":"TYPE_X"}]}',
        '{"name":"\\ud800"}',
        '{"max_batch_size":NaN}',
        '{"max_batch_size":1e400}',
        '{"a":' * 5000,
        '{"name":1}',
        '{"name":"a","name":"b"}',
        '{"parameters":{"a":{"string_value":1}}}',
        '{"version_policy":{"latest":{},"all":{}}}',
        '{"max_batch_size":"a"}',
    ],
)
def test_json_that_is_no_configuration_is_one_short_fault(text: str) -> None:
    (fault,) = read_json(text, "config").errors
    assert fault.place == "config"
    assert len(fault.text) < 400
    assert read_json(text, "config").config == {}


def reference() -> Any:  # a generated module, untyped
    """The same definition as tritonclient ships it, without the rest of that package (it wants grpc)."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("mmsup_test_model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig.DESCRIPTOR


def differences(ours: Any, theirs: Any, path: str, seen: set[str]) -> list[str]:  # descriptors of two pools
    if theirs.full_name in seen:
        return []
    seen.add(theirs.full_name)
    extra = {field.name for field in ours.fields} - {field.name for field in theirs.fields}
    found = [f"{path}.{name}: unknown to them" for name in extra]
    for field in theirs.fields:
        here, mine = f"{path}.{field.name}", ours.fields_by_name.get(field.name)
        if mine is None:
            found.append(f"{here}: missing")
            continue
        facts = [(each.number, each.type, each.is_repeated, each.containing_oneof is None) for each in (mine, field)]
        found += [f"{here}: {facts}"] if facts[0] != facts[1] else []
        if field.enum_type is not None:
            words = [{word.name: word.number for word in each.enum_type.values} for each in (mine, field)]
            found += [f"{here}: {words}"] if words[0] != words[1] else []
        if field.message_type is not None:
            found += differences(mine.message_type, field.message_type, here, seen)
    return found


def test_every_field_has_the_name_number_and_type_that_tritons_clients_know() -> None:
    assert differences(message_descriptor(), reference(), "ModelConfig", set()) == []


@pytest.mark.slow
def test_protobuf_is_not_imported_before_there_is_a_file_to_read() -> None:
    text = (
        "import sys, mmsup.supervisor.repository.scanner, mmsup.supervisor.repository.validation_report\n"
        "sys.exit(', '.join(each for each in ('google.protobuf', 'numpy', 'torch', 'aiohttp', 'zmq', 'msgpack')"
        " if each in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
