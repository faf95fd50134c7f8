from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmsup.ipc.specs import TRITON_PYTHON, WARM_UP_STRINGS_BYTES, ModelSpec, TensorSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.folders import RepositoryRoot
from mmsup.supervisor.repository.scanner import (
    SPEC_LIMIT,
    ModelEntry,
    RepositoryScan,
    scan,
    scan_model,
    with_config,
)

IO = 'input { name: "x" data_type: TYPE_FP32 dims: [4] }\noutput { name: "y" data_type: TYPE_FP32 dims: [-1] }\n'
IO_YAML = "inputs: [{name: x, datatype: FP32, shape: [4]}]\noutputs: [{name: y, datatype: FP32, shape: [-1]}]\n"
Lay = Callable[[dict[str, str]], Settings]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """Lay files into a repository."""

    def write(files: dict[str, str]) -> Settings:
        for name, text in files.items():
            path = tmp_path / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Settings((str(tmp_path / "models"),), "/run/x", "/var/x")

    return write


def entry(settings: Settings, name: str = "m") -> ModelEntry:
    found = scan(settings).models[name]
    assert scan_model(settings, name) == found
    return found


def spec(settings: Settings, name: str = "m") -> ModelSpec:
    found = entry(settings, name)
    assert found.errors == ()
    (only,) = found.specs
    return only


def faults(found: ModelEntry) -> list[str]:
    assert found.specs == ()
    return [str(each) for each in found.errors]


def test_an_onnx_file_alone_is_a_model_with_every_default(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    directory = os.path.join(settings.repositories[0], "m", "1")
    assert spec(settings) == ModelSpec("m", "1", directory, "model.onnx", "ort", "onnxruntime_onnx")


@pytest.mark.parametrize(
    ("file", "engine", "platform"),
    [
        ("model.onnx", "ort", "onnxruntime_onnx"),
        ("model.pt", "pytorch", "pytorch_libtorch"),
        ("model.pt2", "pytorch", "pytorch_libtorch"),
        ("model.py", "custom", "python"),
    ],
)
def test_each_kind_of_artifact_has_its_engine(lay: Lay, file: str, engine: str, platform: str) -> None:
    made = spec(lay({f"m/1/{file}": "", "m/config.pbtxt": IO}))
    assert (made.artefact, made.engine, made.platform) == (file, engine, platform)


@pytest.mark.parametrize("file", ["model.pt", "model.py"])
def test_a_file_without_tensor_names_needs_declared_ones(lay: Lay, file: str) -> None:
    settings = lay({f"m/1/{file}": ""})
    text = f"m/1: {file} does not name its inputs and outputs: declare them in config.pbtxt or mmsup.yaml"
    assert faults(entry(settings)) == [text]
    assert entry(settings).invalid_versions == {"1": text.removeprefix("m/1: ")}
    settings = lay({"m/mmsup.yaml": IO_YAML})
    assert spec(settings).inputs == (TensorSpec("x", "FP32", (4,)),)


def test_a_class_of_tritons_python_backend_may_declare_its_tensors_itself(lay: Lay) -> None:
    silent = "class TritonPythonModel:\n    def execute(self, requests):\n        pb_utils.Tensor('z', 0)\n"
    settings = lay({"m/1/model.py": silent})
    assert "mmsup.yaml, or add them in auto_complete_config" in faults(entry(settings))[0]
    assert 'outputs: [{name: "z", datatype: FP32, shape: [-1]}]' in entry(settings).paste
    made = spec(lay({"m/1/model.py": silent + "    def auto_complete_config(config):\n        return config\n"}))
    assert (made.engine, made.interface, made.inputs) == ("custom", TRITON_PYTHON, ())


ENVIRONMENT = IO + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "%s" } }\n'


def test_an_unpacked_environment_in_a_models_folder_runs_its_workers(lay: Lay) -> None:
    settings = lay({"m/1/model.py": "", "m/env/bin/python": "", "m/other/bin/python3": ""})
    folder = Path(settings.repositories[0], "m")
    for each in ("env/bin/python", "other/bin/python3"):
        Path(folder, each).chmod(0o755)
    lay({"m/config.pbtxt": ENVIRONMENT % "$$TRITON_MODEL_DIRECTORY/env"})
    assert spec(settings).python == str(folder / "env/bin/python")
    lay({"m/config.pbtxt": ENVIRONMENT % (folder / "other")})
    assert spec(settings).python == str(folder / "other/bin/python3")
    lay({"m/mmsup.yaml": f"python: {sys.executable}"})
    assert spec(settings).python == sys.executable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("$$TRITON_MODEL_DIRECTORY/../env", "leads out of the model's folder"),
        ("env", "is neither absolute nor begins with $$TRITON_MODEL_DIRECTORY/"),
        ("$$TRITON_MODEL_DIRECTORY/absent", "is not there"),
        ("$$TRITON_MODEL_DIRECTORY/empty", "has no bin/python: it is no environment of Python"),
        (
            "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
            "is a file: environments are not unpacked here; unpack it once, `mkdir ",
        ),
    ],
)
def test_an_environment_that_cannot_be_used_says_what_to_do(lay: Lay, value: str, text: str) -> None:
    files = {"m/1/model.py": "", "m/empty/x": "", "m/env.tar.gz": "", "m/config.pbtxt": ENVIRONMENT % value}
    found = entry(lay(files))
    assert text in faults(found)[0]
    assert value not in found.public_reason


def test_a_client_chooses_no_environment(lay: Lay) -> None:
    settings = lay({"m/1/model.py": "", "m/env/bin/python": "", "m/config.pbtxt": IO})
    sent = {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "$$TRITON_MODEL_DIRECTORY/env"}}}
    found = with_config(entry(settings), json.dumps(sent))
    assert "is for the operator's files alone" in faults(found)[0]


def test_weights_with_a_class_need_the_option_trusted(lay: Lay) -> None:
    settings = lay({"m/1/model.safetensors": "", "m/1/model.py": "", "m/mmsup.yaml": IO_YAML})
    assert "set trusted: true" in faults(entry(settings))[0]
    made = spec(lay({"m/mmsup.yaml": IO_YAML + "trusted: true"}))
    assert (made.artefact, made.engine, made.trusted) == ("model.safetensors", "pytorch", True)


def test_every_option_reaches_the_spec(lay: Lay) -> None:
    text = (
        'name: "m"\nbackend: "python"\nmax_batch_size: 8\ndefault_model_filename: "net.py"\n'
        "instance_group { count: 2 kind: KIND_GPU gpus: 1 }\nversion_policy { specific { versions: [1, 2] } }\n"
        'parameters { key: "k" value { string_value: "v" } }\n'
    )
    settings = lay({"m/1/net.py": "", "m/2/net.py": "", "m/3/net.py": "", "m/config.pbtxt": text + IO})
    found = entry(settings)
    assert [each.version for each in found.specs] == ["1", "2"]
    assert found.all_versions == ("1", "2", "3")
    made = found.specs[0]
    assert (made.max_batch_size, made.artefact, made.instances, made.device) == (8, "net.py", 2, "cuda:1")
    assert made.parameters == {"k": "v"}
    assert made.outputs == (TensorSpec("y", "FP32", (-1,)),)
    assert made.config["instance_group"] == [{"count": 2, "kind": "KIND_GPU", "gpus": [1]}]


def test_precedence_is_by_option(lay: Lay) -> None:
    text = (
        "max_batch_size: 3\ninstance_group { count: 3 }\n"
        'parameters { key: "mmsup_max_queue" value { string_value: "3" } }'
        'parameters { key: "a" value { string_value: "3" } }'
    )
    settings = lay({"m/1/model.onnx": "", "m/config.pbtxt": text, "m/mmsup.yaml": "max_queue: 4\nenv: {D: 4}\n"})
    everywhere = {"max_queue": 1, "instances": 1, "max_batch_size": 1, "memory": "1GiB", "priority": 1}
    named = {"max_queue": 2, "instances": 2, "max_batch_size": 2, "memory": "2GiB", "env": {"B": "2"}}
    made = spec(replace(settings, defaults=everywhere, models={"m": named, "other": {"memory": "3GiB"}}))
    assert made.max_queue == 4
    assert (made.instances, made.max_batch_size, made.parameters) == (3, 3, {"a": "3"})
    assert made.memory_bytes == 2 << 30
    assert made.priority == 1
    assert made.env == {"B": "2", "D": "4"}


def test_when_a_model_is_loaded_and_put_to_sleep_comes_from_its_own_file_before_that_of_the_server(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "m/mmsup.yaml": "ttl: never\npin: true\n"})
    made = spec(replace(settings, defaults={"load": "on-demand", "ttl": "1h"}, cold_start_timeout_s=7.0))
    assert (made.load, made.ttl_s, made.pin, made.cold_start_timeout_s) == ("on-demand", 0.0, True, 7.0)
    made = spec(replace(settings, models={"m": {"cold_start_timeout": "3s"}}, cold_start_timeout_s=7.0))
    assert made.cold_start_timeout_s == 3.0


def test_all_errors_of_a_model_are_reported_together_and_other_models_are_unaffected(lay: Lay) -> None:
    settings = lay(
        {
            "good/1/model.onnx": "",
            "bad/1/model.onnx": "",
            "bad/config.pbtxt": 'name: "bed"\nmax_batch_sise: 1\n',
            "bad/mmsup.yaml": "memory: 4 gigs\ninstancs: 2\n",
            "text/1/model.onnx": "",
            "text/config.pbtxt": "input {",
            "yaml/1/model.onnx": "",
            "yaml/mmsup.yaml": "a: [",
            "empty/readme.txt": "",
        }
    )
    found = scan(settings)
    assert faults(found.models["bad"]) == [
        'bad/mmsup.yaml:1: memory: "4 gigs" is not a size; one is 512MiB or 4GiB',
        'bad/mmsup.yaml:2: instancs: "instancs" is not known; the nearest is instances',
        'bad/config.pbtxt:2: max_batch_sise: "max_batch_sise" is not known; the nearest is max_batch_size',
        'bad/config.pbtxt:1: name: "bed" is not the name of the folder, "bad"',
    ]
    assert faults(found.models["text"])[0].startswith("text/config.pbtxt:1: ")
    assert faults(found.models["yaml"])[0].startswith("yaml/mmsup.yaml:1: is no YAML")
    assert faults(found.models["empty"])[0].startswith("empty: has no version")
    assert len(found.models["good"].specs) == 1
    assert found.models["good"].errors == found.errors == ()
    assert found.models["bad"].reason.count("; ") >= 3


def test_an_invalid_configuration_is_not_blamed_for_missing_tensors(lay: Lay) -> None:
    found = entry(lay({"m/1/model.py": "", "m/config.pbtxt": "input {"}))
    assert len(faults(found)) == 1


def test_one_version_without_its_file_leaves_the_others_served(lay: Lay) -> None:
    found = entry(lay({"m/1/model.onnx": "", "m/2/readme": "", "m/config.pbtxt": "version_policy { all {} }"}))
    assert [each.version for each in found.specs] == ["1"]
    assert found.invalid_versions.keys() == {"2"}
    assert [each.place for each in found.errors] == ["m/2"]


def test_the_latest_version_is_the_highest_number(lay: Lay) -> None:
    found = entry(lay({"m/9/model.onnx": "", "m/10/model.onnx": "", "m/0/model.onnx": "", "m/01/model.onnx": ""}))
    assert [each.version for each in found.specs] == ["10"]
    assert found.all_versions == ("9", "10")
    assert [each.text for each in found.warnings] == [
        'the folder "0" is no version, and is skipped',
        'the folder "01" is no version, and is skipped',
    ]


def test_a_policy_that_selects_nothing_is_an_error(lay: Lay) -> None:
    text = "version_policy { specific { versions: 7 } }"
    (fault,) = faults(entry(lay({"m/1/model.onnx": "", "m/config.pbtxt": text})))
    assert "selects none" in fault


def test_a_specific_version_that_is_not_there_is_a_warning_and_the_others_are_served(lay: Lay) -> None:
    found = entry(
        lay({"m/1/model.onnx": "", "m/config.pbtxt": "version_policy { specific { versions: 1 versions: 7 } }"})
    )
    assert [each.version for each in found.specs] == ["1"]
    assert [str(each) for each in found.warnings] == [
        "m/config.pbtxt: version_policy.specific: version 7 is not there; the others are served"
    ]


@pytest.mark.parametrize(("key", "is_warned"), [("sequences: true", True), ("decoupled: true", True), ("", False)])
def test_a_response_cache_that_keeps_nothing_is_a_warning(lay: Lay, key: str, is_warned: bool) -> None:
    found = entry(lay({"m/1/model.onnx": "", "m/mmsup.yaml": f"response_cache: true\n{key}\n"}))
    assert [each.place for each in found.warnings] == ["m: response_cache"] * is_warned


def test_labels_that_no_client_will_see_are_a_warning(lay: Lay, tmp_path: Path) -> None:
    names = ("good.txt", "../good.txt", "link.txt", "absent.txt", "latin.txt", "large.txt")
    outputs = [f'output {{ name: "{each}" data_type: TYPE_FP32 dims: 1 label_filename: "{each}" }}' for each in names]
    settings = lay(
        {"m/1/model.onnx": "", "m/config.pbtxt": "\n".join(outputs), "m/good.txt": "a\nb\n", "m/large.txt": ""}
    )
    folder = tmp_path / "models" / "m"
    (folder / "link.txt").symlink_to("good.txt")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    os.truncate(folder / "large.txt", 3 << 30)
    found = entry(settings)
    assert len(found.specs) == 1
    for warning, at, words in zip(
        found.warnings, range(1, 6), ("no name", "is a link", "No such file", "no UTF-8", "is larger"), strict=True
    ):
        assert warning.place == f"m/config.pbtxt:{at + 1}: output[{at}].label_filename"
        assert words in warning.text


def test_a_name_in_two_repositories_is_an_error_of_that_name_only(lay: Lay, tmp_path: Path) -> None:
    settings = lay({"m/1/model.onnx": "", "only/1/model.onnx": ""})
    (tmp_path / "more" / "m" / "1").mkdir(parents=True)
    settings = replace(settings, repositories=(*settings.repositories, str(tmp_path / "more")))
    found = scan(settings)
    assert faults(found.models["m"]) == ["m: is in 2 repositories; a name belongs to one model"]
    assert with_config(found.models["m"], "{}") == found.models["m"] == scan_model(settings, "m")
    assert len(found.models["only"].specs) == 1


def test_the_same_repository_twice_is_one(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    assert spec(replace(settings, repositories=settings.repositories * 2))


def test_a_missing_repository_is_an_error_and_the_others_are_read(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    found = scan(replace(settings, repositories=("/nowhere/models", *settings.repositories)))
    assert [str(each) for each in found.errors] == ["/nowhere/models: cannot be read: No such file or directory"]
    assert found.models.keys() == {"m"}


def test_invalid_names_are_skipped_with_a_warning_and_hidden_ones_silently(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "b d/1/model.onnx": "", ".git/x": "", "-x/1/model.onnx": "", "file.txt": ""})
    os.mkdir(os.fsencode(settings.repositories[0]) + b"/\xff")
    found = scan(settings)
    assert found.models.keys() == {"m"}
    assert len(found.warnings) == 3
    assert all(str(each).encode("utf-8", "surrogateescape") for each in found.warnings)


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a\0", "/etc", "x" * 129, "nowhere"])
def test_an_unknown_name_has_no_entry(lay: Lay, name: str) -> None:
    assert scan_model(lay({"m/1/model.onnx": ""}), name) is None


def test_a_missing_model_in_the_servers_file_is_a_warning(lay: Lay) -> None:
    found = scan(replace(lay({"m/1/model.onnx": ""}), models={"n": {}}))
    assert [str(each) for each in found.warnings] == ["models.n: no repository holds this model"]


def test_links_in_the_repository_are_followed_and_one_that_leads_nowhere_is_an_error(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    root = Path(settings.repositories[0])
    (root / "link").symlink_to(root / "m")
    (root / "dangling").symlink_to("/nowhere")
    (root / "m" / "2").mkdir()
    (root / "m" / "2" / "model.onnx").symlink_to("/nowhere")
    found = scan(settings)
    assert found.models.keys() == {"dangling", "link", "m"}
    assert faults(found.models["dangling"]) == ['dangling: is a link to something that is not there: "/nowhere"']
    assert faults(found.models["m"]) == ['m/2/model.onnx: is a link to something that is not there: "/nowhere"']
    assert scan_model(settings, "dangling") == found.models["dangling"]
    (root / "m" / "2" / "model.onnx").unlink()
    (root / "m" / "2" / "model.onnx").symlink_to(root / "m" / "1" / "model.onnx")
    assert [spec(settings, name).version for name in ("link", "m")] == ["2", "2"]


@pytest.mark.parametrize(
    "place",
    ["m", "m/1", "m/1/model.onnx", "m/1/weights", "m/1/a/b", "m/1/a/b/weights", "m/config.pbtxt", "m/mmsup.yaml"],
)
def test_a_link_out_of_the_repository_is_followed_only_where_the_operator_allows_it(
    lay: Lay, tmp_path: Path, place: str
) -> None:
    files = ("m/1/model.onnx", "m/1/weights", "m/1/a/b/weights", "m/config.pbtxt", "m/mmsup.yaml")
    settings = lay(dict.fromkeys(files, ""))
    path, target = Path(settings.repositories[0]) / place, tmp_path / "elsewhere" / "secret"
    target.parent.mkdir()
    path.rename(target)
    path.symlink_to(target)
    found = entry(settings)
    text = f'is a link that leads out of the repository, to "{target}": copy it, or allow its folder by --follow-links'
    assert f'{place}: {text} "{target.parent}"' in faults(found)
    assert str(tmp_path) not in found.public_reason
    assert "leads out of the repository" in found.public_reason
    assert spec(replace(settings, follow_links=(str(target.parent),))).version == "1"


def test_clients_see_the_place_of_an_error_and_nothing_of_the_file(lay: Lay) -> None:
    secret = "hunter2"
    files = {
        "yaml": f"memory: {secret}\n{secret}: 1\npython: /{secret}\nenv: {{1{secret}: a}}\n",
        "scalar": f"{secret}\n",
        "broken": f"a: [*{secret}",
        "tag": f"a: !{secret} x\n",
        "double": f"env: {{{secret}: a, {secret}: b}}\n",
    }
    pbtxts = {
        "syntax": f"{secret}:x:0:0\n",
        "unknown": f"{secret}: 1\n",
        "name": f'name: "{secret}"',
        "file": f'default_model_filename: "{secret}"',
        "backend": f'backend: "{secret}"',
        "parameter": f'parameters {{ key: "mmsup_{secret}" value {{ string_value: "{secret}" }} }}',
        "value": f'parameters {{ key: "mmsup_memory" value {{ string_value: "{secret}" }} }}',
        "tensor": f'input {{ name: "{secret}" dims: 1 }}\ninput {{ name: "{secret}" data_type: TYPE_FP32 dims: 1 }}',
    }
    layout = {f"{name}/mmsup.yaml": text for name, text in files.items()}
    layout |= {f"{name}/config.pbtxt": text for name, text in pbtxts.items()}
    layout |= {f"{name}/1/model.onnx": "" for name in (*files, *pbtxts)}
    for name, found in scan(lay(layout)).models.items():
        assert found.errors, name
        assert secret not in found.public_reason, name
        assert found.public_reason.startswith(name)


def test_a_model_of_another_server_says_so_first_and_not_that_a_file_is_missing(lay: Lay) -> None:
    settings = lay({"m/1/model.plan": "", "m/config.pbtxt": 'platform: "tensorrt_plan"'})
    (error,) = entry(settings).errors
    assert (
        str(error) == error.for_clients == 'm/config.pbtxt:1: platform: "tensorrt_plan" is not served by this version'
    )
    found = entry(lay({"n/1/x": "", "n/config.pbtxt": 'ensemble_scheduling { }\nplatform: "ensemble"'}), "n")
    assert [each.for_clients for each in found.errors] == [str(each) for each in found.errors]
    assert "ensemble" in found.reason
    assert "holds no" not in found.reason


def test_a_folder_that_contains_the_repository_is_told_where_the_models_seem_to_be(lay: Lay) -> None:
    settings = lay({"models/bert/1/model.onnx": "", "deep/er/models/bert/1/model.onnx": "", "empty/x/y": ""})
    root, found = settings.repositories[0], scan(settings).models
    for name, place in (("models", "models"), ("deep", "deep/er/models")):
        assert f'the models seem to be in "{root}/{place}": give that as --model-repository' in found[name].reason
        assert root not in found[name].public_reason
        assert "has no version" in found[name].public_reason
    assert found["empty"].reason == "empty: has no version: a folder with a positive number, and the model in it"


def test_a_model_file_without_the_folder_of_a_version_is_told_where_it_belongs(lay: Lay) -> None:
    found = scan(lay({"bert/model.onnx": "", "2/model.onnx": ""})).models
    assert "model.onnx belongs into bert/1/" in found["bert"].reason
    assert '"2" looks like a version itself: give --model-repository' in found["2"].reason


def test_who_sends_a_configuration_sees_what_is_wrong_with_it(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "m/mmsup.yaml": "memory: hunter2"})
    found = with_config(entry(settings), '{"max_batch_size": -7}')
    assert "-7" in found.public_reason
    assert "hunter2" not in found.public_reason
    assert "it must be a JSON object" in with_config(entry(settings), "[1]").public_reason


def test_a_folder_of_the_artifacts_name_contains_the_file_and_its_weights(lay: Lay) -> None:
    assert spec(lay({"m/1/model.onnx/model.onnx": "", "m/1/model.onnx/w": ""})).artefact == "model.onnx/model.onnx"


@pytest.mark.parametrize("file", ["config.pbtxt", "mmsup.yaml"])
def test_a_configuration_that_is_a_folder_or_huge_or_no_text_is_an_error(lay: Lay, file: str) -> None:
    settings = lay({"m/1/model.onnx": ""})
    path = Path(settings.repositories[0]) / "m" / file
    path.mkdir()
    assert faults(entry(settings)) == [f"m/{file}: is no regular file"]
    path.rmdir()
    path.write_text("#" * ((1 << 20) + 1))
    assert "is larger than" in faults(entry(settings))[0]
    path.write_bytes(b"\xff")
    assert faults(entry(settings)) == [f"m/{file}: is no UTF-8 text: byte 0"]
    path.unlink()
    path.symlink_to("/nowhere")
    assert faults(entry(settings)) == [f'm/{file}: is a link to something that is not there: "/nowhere"']


@pytest.mark.parametrize("file", ["config.pbtxt", "mmsup.yaml"])
@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
def test_a_pipe_or_a_socket_in_place_of_a_configuration_is_an_error_at_once(lay: Lay, file: str, kind: int) -> None:
    settings = lay({"m/1/model.onnx": ""})
    os.mknod(os.path.join(settings.repositories[0], "m", file), 0o600 | kind)
    assert faults(entry(settings)) == [f"m/{file}: is no regular file"]


@pytest.mark.parametrize("file", ["model.onnx", "model.py"])
def test_a_pipe_in_place_of_a_model_is_an_error_of_its_version(lay: Lay, file: str) -> None:
    settings = lay({"m/1/model.onnx": "", "m/2/labels.txt": ""})
    os.mkfifo(os.path.join(settings.repositories[0], "m", "2", file))
    found = entry(settings)
    assert [str(each) for each in found.errors] == [f'm/2: "{file}" is no regular file']
    assert found.invalid_versions.keys() == {"2"}


def test_a_pipe_with_another_name_is_ignored(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    os.mkfifo(os.path.join(settings.repositories[0], "m", "1", "pipe"))
    assert spec(settings).artefact == "model.onnx"


def test_folders_below_a_version_may_hold_links_in_circles_and_to_nothing(lay: Lay, tmp_path: Path) -> None:
    settings = lay({"m/1/model.onnx": "", "m/1/a/x": "", "shared/1/model.onnx": "", "shared/1/b/y": ""})
    root = Path(settings.repositories[0])
    below = root / "m" / "1" / "a"
    (below / "up").symlink_to(root / "m")
    (below / "loop").symlink_to(below / "loop")
    (below / "gone").symlink_to("/nowhere")
    (below / "shared").symlink_to(root / "shared")
    assert spec(settings).version == "1"
    (root / "shared" / "1" / "b" / "out").symlink_to(tmp_path)
    assert [each.partition(" is ")[0] for each in faults(entry(settings))] == ["m/1/a/shared/1/b/out:"]


def test_an_entry_that_cannot_be_examined_is_an_error_of_that_model_alone(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": ""})
    loop = Path(settings.repositories[0]) / "loop"
    loop.symlink_to(loop)
    found = scan(settings)
    assert found.errors == ()
    assert found.models["m"].errors == ()
    assert faults(found.models["loop"]) == ["loop: cannot be read: Too many levels of symbolic links"]


def test_a_configuration_that_is_too_long_for_a_message_is_an_error(lay: Lay) -> None:
    value = "x" * SPEC_LIMIT
    settings = lay(
        {"m/1/model.onnx": "", "m/config.pbtxt": f'parameters {{ key: "k" value {{ string_value: "{value}" }} }}'}
    )
    assert faults(entry(settings)) == [f"m/1: its configuration is longer than {SPEC_LIMIT} bytes"]


def test_a_missing_interpreter_is_an_error(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "m/mmsup.yaml": "python: /nowhere/python"})
    assert faults(entry(settings)) == ['m: python: "/nowhere/python" is no program that can be run here']


def test_the_file_digest_changes_with_the_weights_beside_an_onnx_file_in_a_folder_of_its_own(lay: Lay) -> None:
    first = entry(lay({"m/1/model.onnx/model.onnx": "x"})).file_digest
    assert entry(lay({"m/1/model.onnx/weights.bin": "x"})).file_digest != first


def test_the_file_digest_changes_with_a_file_and_not_with_a_pycache(lay: Lay) -> None:
    settings = lay({"m/1/model.py": "", "m/config.pbtxt": IO})
    first = entry(settings).file_digest
    lay({"m/1/__pycache__/model.pyc": "x"})
    assert entry(settings).file_digest == first != ""
    lay({"m/1/model.py": "pass"})
    second = entry(settings).file_digest
    assert second != first
    lay({"m/mmsup.yaml": "priority: 1"})
    assert entry(settings).file_digest != second


def test_a_changed_warm_up_sample_is_a_change_of_the_model(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "m/warmup/x.bin": "1"})
    first = entry(settings)
    assert first.warnings == ()
    lay({"m/warmup/x.bin": "22"})
    assert entry(settings).file_digest != first.file_digest


INPUT = 'input { name: "x" data_type: TYPE_FP32 dims: 2 }'


def sample(name: str, fields: str, more: str = "") -> str:
    return f'model_warmup {{ {more} inputs {{ key: "{name}" value {{ dims: 2 {fields} }} }} }}'


FROM_FILE = 'data_type: TYPE_FP32 input_data_file: "two.bin"'


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (INPUT + sample("zz", "data_type: TYPE_FP32 zero_data: true"), 'the model has no input "zz"; it has "x"'),
        (INPUT + sample("x", "data_type: TYPE_INT32 zero_data: true"), "is INT32, and the input is declared as FP32"),
        (INPUT + "model_warmup { batch_size: 1 }", 'has no input "x"'),
        (sample("x", FROM_FILE), '"warmup/two.bin" holds 2 bytes, and FP32 [2] takes 8'),
        ("max_batch_size: 4 " + sample("x", FROM_FILE, "batch_size: 3"), "takes 8, or 24 for 3 rows"),
        (sample("x", FROM_FILE.replace("two", "gone")), 'there is no file "warmup/gone.bin"'),
    ],
)
def test_a_warm_up_sample_that_does_not_fit_its_model_is_found_by_check(config: str, words: str, lay: Lay) -> None:
    found = faults(entry(lay({"m/1/model.onnx": "", "m/warmup/two.bin": "12", "m/config.pbtxt": config})))
    assert any(words in each for each in found), found


def test_a_warm_up_file_of_strings_has_a_longest_size(lay: Lay) -> None:
    config = f"{INPUT.replace('FP32', 'STRING')} {sample('x', FROM_FILE.replace('FP32', 'STRING'))}"
    settings = lay({"m/1/model.onnx": "", "m/warmup/two.bin": "", "m/config.pbtxt": config})
    assert entry(settings).errors == ()
    os.truncate(Path(settings.repositories[0]) / "m" / "warmup" / "two.bin", WARM_UP_STRINGS_BYTES + 1)
    (fault,) = faults(entry(settings))
    sizes = f"{WARM_UP_STRINGS_BYTES + 1} bytes; at most {WARM_UP_STRINGS_BYTES} are read"
    assert fault.endswith(f'"warmup/two.bin" holds {sizes}')


@pytest.mark.parametrize("size", [8, 24])
def test_a_warm_up_file_of_one_row_or_of_the_whole_batch_is_no_fault(size: int, lay: Lay) -> None:
    config = f"max_batch_size: 4 {INPUT} {sample('x', FROM_FILE, 'batch_size: 3')}"
    settings = lay({"m/1/model.onnx": "", "m/warmup/two.bin": "1" * size, "m/config.pbtxt": config})
    assert entry(settings).errors == ()


@pytest.mark.parametrize("at", ["warmup", "warmup/x.bin"])
def test_a_warm_up_sample_outside_the_repository_is_not_read(at: str, lay: Lay, tmp_path: Path) -> None:
    settings = lay({"m/1/model.onnx": "", "m/other/x.bin": ""})
    secret = tmp_path / "secret"
    secret.mkdir()
    link = Path(settings.repositories[0]) / "m" / at
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(secret)
    (fault,) = faults(entry(settings))
    assert fault.startswith(f"m/{at}: is a link that leads out of the repository")
    assert not entry(settings).specs
    assert entry(replace(settings, follow_links=(str(secret),))).errors == ()


def test_a_load_request_replaces_the_configuration_and_nothing_else(lay: Lay) -> None:
    settings = lay({"m/1/model.onnx": "", "m/2/model.onnx": "", "m/config.pbtxt": "max_batch_size: 2"})
    settings = replace(settings, defaults={"memory": "1GiB"})
    text = '{"max_batch_size": "16", "version_policy": {"specific": {"versions": ["1"]}}, "backend": "onnxruntime"}'
    made = with_config(entry(settings), text)
    assert made.errors == ()
    assert [(each.version, each.max_batch_size, each.memory_bytes) for each in made.specs] == [("1", 16, 1 << 30)]
    assert entry(settings).specs[0].max_batch_size == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        '{"x": 1}',
        '{"name": "other"}',
        '{"backend": "python"}',
        '{"default_model_filename": "../m"}',
        '{"parameters": {"mmsup_python": {"string_value": "/bin/sh"}}}',
        " " * (2 << 20),
    ],
)
def test_an_invalid_configuration_of_a_load_request_is_an_error_with_its_place(lay: Lay, text: str) -> None:
    made = with_config(entry(lay({"m/1/model.onnx": ""})), text)
    assert faults(made)
    assert all(each.startswith("m") for each in faults(made))


def test_no_error_of_a_model_contains_the_path_of_the_repository(lay: Lay) -> None:
    settings = lay({"m/1/x": "", "m/config.pbtxt": "name: 1", "m/mmsup.yaml": "a: ["})
    assert settings.repositories[0] not in entry(settings).reason


def test_an_empty_repository_has_no_model_and_no_error(lay: Lay, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    assert scan(lay({})) == RepositoryScan({}, roots={str(root): RepositoryRoot(root.stat().st_dev, 0)})
