from __future__ import annotations

import pytest

from mmsup.supervisor.repository.config_pbtxt import message_descriptor, read_json, read_pbtxt
from mmsup.supervisor.repository.model_config import (
    IGNORED_FIELDS,
    UNSUPPORTED_FIELDS,
    InterpretedConfig,
    interpret,
)

SUPPORTED = {
    "model_warmup",
    "name",
    "platform",
    "backend",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "instance_group",
    "dynamic_batching",
    "ensemble_scheduling",
    "sequence_batching",
    "response_cache",
    "default_model_filename",
    "parameters",
    "model_transaction_policy",
}


def interpreted(text: str) -> InterpretedConfig:
    return interpret(read_pbtxt(text, "m/config.pbtxt"), "m")


def test_every_field_is_supported_or_warned_about_or_refused() -> None:
    known = {field.name for field in message_descriptor().fields}
    groups = (SUPPORTED, set(IGNORED_FIELDS), set(UNSUPPORTED_FIELDS))
    assert set.union(*groups) == known
    assert sum(len(each) for each in groups) == len(known)


def test_an_empty_configuration_has_no_option_and_the_latest_version() -> None:
    assert interpreted("") == InterpretedConfig({})


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ('backend: "onnxruntime"', "ort"),
        ('backend: "pytorch"', "pytorch"),
        ('backend: "python"', "custom"),
        ('platform: "onnxruntime_onnx"', "ort"),
        ('platform: "pytorch_libtorch"', "pytorch"),
        ('platform: "onnxruntime_onnx" backend: "onnxruntime"', "ort"),
        ('backend: ""', ""),
        ('platform: "ensemble"', "ensemble"),
        ("ensemble_scheduling {}", "ensemble"),
    ],
)
def test_backend_or_platform_names_the_engine(text: str, engine: str) -> None:
    assert interpreted(text).engine == engine
    assert interpreted(text).errors == ()


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('name: "other"', "m/config.pbtxt:1: name", "not the name of the folder"),
        ('backend: "onxruntime"', "m/config.pbtxt:1: backend", "the nearest is onnxruntime"),
        ('backend: "tensorrt"', "m/config.pbtxt:1: backend", "not served by this version"),
        ('backend: "python" platform: "onnxruntime_onnx"', "m/config.pbtxt:1: platform", "contradicts"),
        ("max_batch_size: -1", "m/config.pbtxt:1: max_batch_size", "not between 0"),
        ('default_model_filename: "../x.onnx"', "m/config.pbtxt:1: default_model_filename", "not the name of a file"),
        ('default_model_filename: ".."', "m/config.pbtxt:1: default_model_filename", "not the name of a file"),
        ('input { name: "x" data_type: TYPE_FP32 }', "m/config.pbtxt:1: input[0].dims", "is missing"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "m/config.pbtxt:1: input[0].name", "is missing"),
        ('input { name: "x" dims: 1 }', "m/config.pbtxt:1: input[0].datatype", "is missing"),
        ('input { name: "x" data_type: TYPE_INVALID dims: 1 }', "m/config.pbtxt:1: input[0].data_type", "no datatype"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 0 }', "m/config.pbtxt:1: input[0].dims", "no size"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [2, -1] reshape { shape: [-1, 3] } }',
            "m/config.pbtxt:1: input[0].reshape",
            "not as many elements",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [3, 2] format: FORMAT_NCHW }',
            "m/config.pbtxt:1: input[0].format",
            "has 3 dimensions, dims has 2",
        ),
        (
            'output { name: "x" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
            "m/config.pbtxt:1: output[0].is_shape_tensor",
            "not supported",
        ),
        ("instance_group { count: -1 }", "m/config.pbtxt:1: instance_group[0].count", "not between"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "m/config.pbtxt:1: instance_group[0].gpus", "KIND_CPU"),
        ("instance_group { gpus: -1 }", "m/config.pbtxt:1: instance_group[0].gpus", "no GPU has"),
        ("instance_group { count: 200 } instance_group { count: 200 }", "m/config.pbtxt:1: instance_group", "400"),
        ("version_policy { latest { num_versions: 0 } }", "m/config.pbtxt:1: version_policy.latest", "at least 1"),
        ("version_policy { specific {} }", "m/config.pbtxt:1: version_policy.specific", "at least one"),
        (
            "sequence_batching { iterative_sequence: true }",
            "m/config.pbtxt:1: sequence_batching.iterative_sequence",
            "is not supported",
        ),
        (
            'backend: "python" ensemble_scheduling {}',
            "m/config.pbtxt:1: ensemble_scheduling",
            "is for a model whose platform is ensemble",
        ),
        (
            'parameters { key: "mmsup_memori" value { string_value: "1" } }',
            "m/config.pbtxt:1: parameters.mmsup_memori",
            "the nearest is mmsup_memory",
        ),
        (
            'parameters { key: "mmsup_memory" value { string_value: "4 gigs" } }',
            "m/config.pbtxt:1: parameters.mmsup_memory",
            '"4 gigs" is not a size',
        ),
        (
            'parameters { key: "mmsup_env" value { string_value: "{A" } }',
            "m/config.pbtxt:1: parameters.mmsup_env",
            "is no YAML",
        ),
    ],
)
def test_fields_that_are_invalid_or_would_change_results_are_refused_with_place_and_reason(
    text: str, place: str, words: str
) -> None:
    (error,) = interpreted(text).errors
    assert error.place == place
    assert words in error.text


def test_all_errors_of_a_file_are_reported_together() -> None:
    found = interpreted(
        'name: "x"\nbackend: "y"\nmax_batch_sise: 1\nensemble_scheduling {}\ninput { dims: 1 }\nbatch_input {}\n'
    )
    assert [each.place.split(":")[1] for each in found.errors] == ["3", "1", "2", "5", "5", "6"]


@pytest.mark.parametrize("word", IGNORED_FIELDS)
def test_an_ignored_field_is_one_warning_and_no_error(word: str) -> None:
    kind = message_descriptor().fields_by_name[word]
    value = f'{word}: "x"' if kind.message_type is None else f"{word} {{}}"
    found = interpreted(value)
    assert found.errors == ()
    assert [(each.place, each.text) for each in found.warnings] == [
        (f"m/config.pbtxt:1: {word}", "is read, and has no effect in this version")
    ]


def test_what_an_ensemble_leaves_to_its_steps_is_warned_about() -> None:
    found = interpreted(
        'platform: "ensemble"\n'
        'instance_group { count: 2 }\nresponse_cache { enable: true }\nmodel_warmup { name: "w" }\n'
    )
    assert [each.place for each in found.warnings] == [
        "m/config.pbtxt:2: instance_group", "m/config.pbtxt:3: response_cache", "m/config.pbtxt:4: model_warmup",
    ]  # fmt: skip
    assert interpreted('platform: "ensemble"\nresponse_cache { enable: false }').warnings == ()


def test_a_model_that_answers_many_times_is_so_by_its_configuration() -> None:
    assert interpreted("model_transaction_policy { decoupled: true }").options == {"decoupled": True}


def test_a_field_that_is_switched_off_is_neither_refused_nor_warned_about() -> None:
    found = interpreted(
        "model_transaction_policy { decoupled: false }"
        'input { name: "x" data_type: TYPE_FP32 dims: 1 is_shape_tensor: false allow_ragged_batch: false }'
        "instance_group { passive: false }"
    )
    assert found.errors == found.warnings == ()


def test_tensors_become_the_options_inputs_and_outputs() -> None:
    found = interpreted(
        'input { name: "x" data_type: TYPE_STRING dims: [-1, 3] optional: true }'
        'output { name: "y" data_type: TYPE_BF16 dims: 1 label_filename: "l.txt" }'
    )
    assert found.options == {
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 3], "optional": True}],
        "outputs": [{"name": "y", "datatype": "BF16", "shape": [1], "optional": False}],
    }
    assert not found.warnings, "label_filename has its effect"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("instance_group { count: 3 }", {"instances": 3}),
        ("instance_group { }", {"instances": 1}),
        ("instance_group { kind: KIND_CPU count: 2 }", {"instances": 2, "device": "cpu"}),
        ("instance_group { kind: KIND_GPU }", {"instances": 1, "device": "cuda"}),
        ("instance_group { kind: KIND_GPU gpus: 2 }", {"instances": 1, "device": "cuda:2"}),
        ("instance_group { gpus: 2 }", {"instances": 1, "device": "cuda:2"}),
        ("instance_group { kind: KIND_AUTO }", {"instances": 1, "device": "auto"}),
        ("instance_group { kind: KIND_MODEL }", {"instances": 1, "device": "auto"}),
        ("instance_group { count: 2 kind: KIND_CPU } instance_group { count: 1 }", {"instances": 3, "device": "cpu"}),
    ],
)
def test_instance_groups_become_the_options_instances_and_device(text: str, keys: dict[str, object]) -> None:
    assert interpreted(text).options == keys
    assert interpreted(text).warnings == ()


def test_instances_on_several_devices_are_counted_and_the_used_device_is_named() -> None:
    found = interpreted("instance_group { count: 2 kind: KIND_GPU gpus: [0, 1] }")
    assert found.options == {"instances": 4, "device": "cuda:0"}
    assert "all instances run on cuda:0" in found.warnings[0].text


def test_prefixed_parameters_are_options_and_the_others_go_to_the_model() -> None:
    found = interpreted(
        'parameters { key: "labels" value { string_value: "a,b" } }'
        'parameters { key: "mmsup_memory" value { string_value: "1GiB" } }'
        'parameters { key: "mmsup_pin" value { string_value: "true" } }'
        'parameters { key: "mmsup_env" value { string_value: "{OMP_NUM_THREADS: 1}" } }'
    )
    assert found.errors == ()
    assert found.options == {
        "parameters": {"labels": "a,b"},
        "memory": 1 << 30,
        "pin": True,
        "env": {"OMP_NUM_THREADS": "1"},
    }


@pytest.mark.parametrize("key", ["mmsup_python", "mmsup_env", "mmsup_trusted", "mmsup_memory", "mmsup_x"])
def test_a_client_cannot_set_options_of_the_operator(key: str) -> None:
    text = f'{{"parameters": {{"{key}": {{"string_value": "true"}}}}}}'
    found = interpret(read_json(text, "m: parameter config"), "m", from_client=True)
    assert found.options == {}
    assert "operator" in found.errors[0].text


@pytest.mark.parametrize(
    ("dims", "shape"), [("1", ""), ("[4, 3]", "12"), ("[-1, 4]", "[-1, 2, 2]"), ("[2, -1, 3]", "[1, 2, -1, 3]")]
)
def test_reshape_of_as_many_elements_is_served(dims: str, shape: str) -> None:
    inner = f"shape: {shape}" if shape else ""
    found = interpreted(f'input {{ name: "x" data_type: TYPE_FP32 dims: {dims} reshape {{ {inner} }} }}')
    assert (found.errors, found.warnings) == ((), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('inputs { key: "x" value { dims: 2 zero_data: true } }', "has no data_type"),
        ('inputs { key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true } }', "not positive"),
        ('inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 } }', "needs one of zero_data"),
        (
            'inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "../f" } }',
            "not the name of a file",
        ),
        ("batch_size: 2", "more than max_batch_size"),
        ("count: 4000000000", "4000000000 is more than 10000 runs"),
    ],
)
def test_a_warm_up_sample_that_cannot_run_is_a_fault_of_the_configuration(text: str, words: str) -> None:
    (error,) = interpreted(f"model_warmup {{ {text} }}").errors
    assert error.place.startswith("m/config.pbtxt:")
    assert words in error.text


def test_model_warmup_has_an_effect() -> None:
    sample = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 random_data: true } }'
    found = interpreted(f"max_batch_size: 4 model_warmup {{ batch_size: 4 {sample} }}")
    assert (found.errors, found.warnings) == ((), ())
