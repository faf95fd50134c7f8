from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.config import model_options
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.server_options import SERVER_OPTIONS, read_config
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.config.yaml_file import parse_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
REPOSITORY = {"repositories": ("/r",)}
Write = Callable[[str], str]


@pytest.fixture
def server_file(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "two.yaml"
        path.write_text(text)
        return str(path)

    return write


def settings(flags: dict[str, object], environ: dict[str, str] | None = None, uid: int = 0) -> Settings:
    config = read_config(flags, environ or {}, uid)
    assert config.settings is not None, config.errors
    return config.settings


def faults(flags: dict[str, object], environ: dict[str, str] | None = None) -> list[str]:
    config = read_config(flags, environ or {}, 0)
    assert config.settings is None
    return [str(each) for each in config.errors]


def test_a_repository_alone_is_enough_and_the_rest_has_defaults() -> None:
    assert settings({"repositories": ("/r",)}) == Settings(("/r",), "/run/mmsup", "/var/lib/mmsup")


def test_no_repository_is_an_error() -> None:
    assert faults({}) == ["--model-repository: is missing: the folder that holds the models"]


def test_precedence_is_flag_environment_file_default(server_file: Write) -> None:
    path = server_file("http_port: 3\nmetrics_port: 3003\n")
    flags: dict[str, object] = {**REPOSITORY, "config": path}
    environ = {"MMSUP_HTTP_PORT": "2"}
    assert settings({**flags, "http_port": "1"}, environ).http_port == 1
    assert settings(flags, environ).http_port == 2
    assert settings(flags).http_port == 3
    assert settings(dict(REPOSITORY)).http_port == 8000


def test_each_value_has_its_origin(server_file: Write) -> None:
    path = server_file("\n\nmetrics_port: 3003\n")
    found = read_config({**REPOSITORY, "config": path}, {"MMSUP_HTTP_PORT": "2", "MMSUP_HOST": "::1"}, 0).origins
    sources = {each.option: each.source for each in found}
    assert sources["model_repository"] == "flag"
    assert sources["http_port"] == "environment MMSUP_HTTP_PORT"
    assert sources["metrics_port"] == f"{path}:3"
    assert sources["metrics_address"] == "as host"
    assert sources["gateways"] == "default"
    assert len(found) == len(SERVER_OPTIONS)


def test_the_environment_can_name_the_file(server_file: Write) -> None:
    path = server_file("model_repository: models\nid: triton\n")
    assert settings({}, {"MMSUP_CONFIG": path}).server_name == "triton"


def test_paths_in_the_file_are_relative_to_its_folder_and_others_to_the_working_directory(server_file: Write) -> None:
    path = server_file("model_repository: [models, /abs]\n")
    assert settings({"config": path}).repositories == (str(Path(path).parent / "models"), "/abs")
    assert settings({"repositories": ("models",)}).repositories == (str(Path.cwd() / "models"),)
    assert settings({}, {"MMSUP_MODEL_REPOSITORY": "/a:/b"}).repositories == ("/a", "/b")


def test_all_errors_are_reported_together_with_file_line_and_key(server_file: Write) -> None:
    path = server_file(
        "http_port: 99999\n"
        "gateways: two\n"
        "htp_port: 1\n"
        "defaults: {memory: 4 gigs, devise: cpu}\n"
        "models:\n"
        "  bert:\n"
        "    memory: 4 gigs\n"
        "    inputs: [{name: x, datatype: FP33, shape: [1]}]\n"
        "  b/d: {}\n"
        "gateways: 2\n"
    )
    found = faults({"config": path, "poll_s": "soon"}, {"MMSUP_STRICT_READINESS": "maybe"})
    places = [each.split(": ")[0:2] for each in found]
    assert [f"{path}:1", "http_port"] in places
    assert [f"{path}:2", "gateways"] in places
    assert [f"{path}:3", "htp_port"] in places
    assert [f"{path}:4", "defaults.devise"] in places
    assert [f"{path}:8", "models.bert.inputs[0].datatype"] in places
    assert [f"{path}:9", "models.b/d"] in places
    assert [f"{path}:10", "gateways"] in places
    assert f'{path}:7: models.bert.memory: "4 gigs" is not a size; one is 512MiB or 4GiB' in found
    assert 'MMSUP_STRICT_READINESS: "maybe" is neither true nor false' in found
    assert any(each.startswith("--repository-poll-secs: ") for each in found)
    assert any(each.startswith("--model-repository: is missing") for each in found)
    assert any("the nearest is http_port" in each for each in found)
    assert len(found) == 12


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_port": 8002}, "8002 is the HTTP port"),
        ({"grpc_port": 8000}, "8000 is the port of http too"),
        ({"grpc_port": 8002}, "8002 is the port of metrics too"),
        ({"grpc_port": 70000}, "70000"),
        ({"grpc_unix": "/" + "d" * 110}, "too long"),
        ({"load_models": ("a",)}, "explicit alone"),
        ({"runtime_dir": "/" + "d" * 100}, "too long"),
        ({"http_unix": "/" + "d" * 110}, "too long"),
        ({"config": "/nowhere/x.yaml"}, "cannot be read: No such file"),
        ({"config": "/dev/null"}, "/dev/null: is no regular file"),
        ({"control_mode": "exploit"}, "the nearest is explicit"),
        ({"load_models": ("../x",), "control_mode": "explicit"}, "no name of a model"),
        ({"host": "\ud800"}, "no text"),
        ({"repositories": ("/a\0b",)}, "no text"),
        ({"gateways": True}, "not a whole number"),
        ({"max_body_bytes": "lots"}, "not a size"),
    ],
)
def test_an_invalid_option_is_one_error_with_a_reason(flags: dict[str, object], words: str) -> None:
    (fault,) = faults({**REPOSITORY, **flags})
    assert words in fault


def test_two_ports_of_0_do_not_clash() -> None:
    assert settings({**REPOSITORY, "http_port": 0, "grpc_port": 0, "metrics_port": 0}).metrics_port == 0


def test_grpc_is_wanted_where_its_port_is_named_and_has_the_host_of_http_by_default() -> None:
    plain = settings(dict(REPOSITORY))
    assert (plain.grpc_host, plain.grpc_port, plain.grpc_is_wanted) == ("127.0.0.1", 8001, False)
    made = settings({**REPOSITORY, "host": "::1", "grpc_port": 9})
    assert (made.grpc_host, made.grpc_port, made.grpc_is_wanted) == ("::1", 9, True)
    assert settings({**REPOSITORY, "http_port": 8001}).http_port == 8001, "who has it already keeps it"
    assert settings({**REPOSITORY, "host": "::1", "grpc_host": "127.0.0.1"}).grpc_host == "127.0.0.1"


def test_metrics_have_the_host_of_http_by_default() -> None:
    assert settings({**REPOSITORY, "host": "::1"}).metrics_host == "::1"
    assert settings({**REPOSITORY, "host": "::1", "metrics_host": "127.0.0.1"}).metrics_host == "127.0.0.1"


def test_default_directories_depend_on_the_user() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/u"}
    made = settings(dict(REPOSITORY), environ, uid=7)
    assert (made.runtime_dir, made.state_dir) == ("/run/user/7/mmsup", "/home/u/.local/state/mmsup")


def test_options_of_models_are_parsed_into_plain_numbers(server_file: Write) -> None:
    path = server_file("model_repository: r\ndefaults: {deadline: 500ms}\nmodels: {bert: {memory: 1GiB, pin: true}}\n")
    made = settings({"config": path})
    assert made.defaults == {"deadline": 0.5}
    assert made.models == {"bert": {"memory": 1 << 30, "pin": True}}
    assert Settings.from_json(made.to_json()) == made


def test_an_unknown_variable_with_our_prefix_is_a_warning() -> None:
    config = read_config(REPOSITORY, {"MMSUP_HTP_PORT": "1", "MMSUP_INSECURE": "1", "OTHER": "x"}, 0)
    assert config.settings is not None
    assert [str(each) for each in config.warnings] == [
        'MMSUP_HTP_PORT: "MMSUP_HTP_PORT" is not known; the nearest is MMSUP_HTTP_PORT'
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "a list is given instead of keys"),
        ("just words", "is given instead of keys"),
        ("a: b: c", ":1: is no YAML"),
        ("a: [1", "is no YAML"),
        ("\0", "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not supported"),
        ("a: !!int x", "no int"),
        ("a: !!timestamp x\nid: [", "is no YAML"),
        ("[" * 500, "nested too deeply"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {x: 1}\nb: {<<: *a}", "<<"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("k" * 300 + ": 1", "a key of 300 letters"),
        ("models: []", "is no mapping of models"),
        ("models: {bert: 7}", "is no mapping of the keys"),
        ("defaults: 7", "is no mapping of the keys"),
        ("id: 2026-13-99\ngateways: 2026-13-99", "is not a whole number"),
    ],
)
def test_an_invalid_file_is_an_error_and_never_a_traceback(server_file: Write, text: str, words: str) -> None:
    path = server_file(text)
    assert any(words in each and each.startswith(path) for each in faults({**REPOSITORY, "config": path}))


def test_a_file_of_more_than_a_mebibyte_or_of_no_text_is_an_error(server_file: Write) -> None:
    path = server_file("#" * ((1 << 20) + 1))
    assert faults({**REPOSITORY, "config": path}) == [f"{path}: is larger than 1048576 bytes"]
    Path(path).write_bytes(b"id: \xff")
    assert faults({**REPOSITORY, "config": path}) == [f"{path}: is no UTF-8 text: byte 4"]


def test_aliases_are_not_expanded(server_file: Write) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 14))]
    path = server_file("\n".join([*lines, "gateways: *a13", "defaults: {inputs: *a13}"]))
    assert any("a list is not a whole number" in each for each in faults({**REPOSITORY, "config": path}))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_is_valid(path: Path) -> None:
    assert settings({"config": str(path)}).repositories == ("/srv/mmsup/models",)


def test_the_default_configuration_shows_every_option_and_key_with_its_default() -> None:
    text = (CONFIGS / "default.yaml").read_text()
    shown = parse_yaml(re.sub(r"(?m)^#( *[a-z_0-9]+:)", r"\1", text), "default.yaml")
    assert not shown.errors
    sections = {"defaults", "models"}
    assert shown.keys.keys() == {each.key for each in SERVER_OPTIONS} - {"runtime_dir", "state_dir"} | sections
    defaults = settings({"repositories": ("/srv/mmsup/models",)})
    for option in SERVER_OPTIONS:
        if option.key in shown.keys and option.field != "grpc_min_ping_interval_ms":  # its default is no number
            value = option.parse(shown.keys[option.key])
            assert (tuple(value) if option.many else value) == getattr(defaults, option.field), option.key
    spec = ModelSpec("m", "1", "/d", "f", "ort", "p")
    without_default = {"memory", "recycle_memory", "gpu_memory", "python", "preload", "queue_policies", "strings"}
    without_default |= {"load", "ttl", "evict"}
    for key in shown.keys["defaults"].keys() - without_default:
        field = model_options.MODEL_OPTIONS[key].field
        value = model_options.MODEL_OPTIONS[key].parse(shown.keys["defaults"][key])
        assert model_options.spec_fields({key: value})[field] == getattr(spec, field), key


def test_failpoints_are_warned_of_and_no_file_can_enable_them(tmp_path: Path) -> None:
    config = read_config(REPOSITORY, {"MMSUP_FAULT_POINTS": "/somewhere"}, 0)
    assert config.settings is not None
    assert config.settings.fault_points == "/somewhere"
    assert [each.place for each in config.warnings] == ["MMSUP_FAULT_POINTS"]
    path = tmp_path / "mmsup.yaml"
    path.write_text("fault_points: /somewhere\n")
    assert read_config({**REPOSITORY, "config": str(path)}, {}, 0).errors


def test_the_file_of_the_gpu_driver_comes_from_the_environment(tmp_path: Path) -> None:
    for environ, path in (({}, "/dev/nvidiactl"), ({"MMSUP_GPU_DRIVER": "/dev/dxg"}, "/dev/dxg")):
        config = read_config(REPOSITORY, environ, 0)
        assert config.settings is not None
        assert (config.settings.gpu_driver, config.warnings) == (path, ())


@pytest.mark.parametrize(
    ("given", "size"),
    [("local,size=1048576", 1 << 20), ("local,size=64MiB", 64 << 20), ("local,size=0", 0), (0, 0), (4096, 4096)],
)
def test_the_cache_is_configured_as_triton_spells_it(given: object, size: int) -> None:
    (option,) = [each for each in SERVER_OPTIONS if each.flag == "cache-config"]
    assert option.parse(given) == size


@pytest.mark.parametrize("given", ["redis,host=x", "local,ttl=5", "local,size=-1", "local,size=", "much"])
def test_a_cache_that_is_not_there_is_refused(given: str) -> None:
    (option,) = [each for each in SERVER_OPTIONS if each.flag == "cache-config"]
    with pytest.raises(InvalidValue):
        option.parse(given)
