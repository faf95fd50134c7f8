from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from mmsup.supervisor.cli.serve.flags import FLAGS, given_flags, server_flags
from mmsup.supervisor.cli.serve.triton_flags import IGNORED, ignored_flag_warnings, triton_flags
from mmsup.supervisor.config.server_options import SERVER_OPTIONS


def parsed(*arguments: str) -> dict[str, object]:
    """The options that click parses from a command line."""
    seen: dict[str, object] = {}

    @click.command()
    @server_flags
    @triton_flags
    def command(**values: object) -> None:
        seen.update(values)

    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return seen


def test_every_option_of_the_configuration_has_a_flag_and_a_sentence() -> None:
    assert FLAGS.keys() == {option.field for option in SERVER_OPTIONS}
    assert all(flag.help.endswith(".") for flag in FLAGS.values())


def test_the_help_shows_sizes_with_their_unit_and_where_the_metrics_listen() -> None:
    shown = " ".join(CliRunner().invoke(click.Command("serve", params=_options()), ["--help"]).stdout.split())
    assert all(f"[default: {size}]" in shown for size in ("64MiB", "2GiB", "1GiB"))
    assert "[default: the address of --host]" in shown


def _options() -> list[click.Parameter]:
    @click.command()
    @server_flags
    def command(**_: object) -> None:
        """Not called."""

    return command.params


def test_no_flag_is_both_an_option_and_ignored() -> None:
    assert not IGNORED.keys() & {option.flag for option in SERVER_OPTIONS}


@pytest.mark.parametrize("word", ["grpc-use-ssl", "http-restricted-api", "grpc-restricted-protocol"])
def test_a_flag_for_a_protection_that_does_not_exist_is_refused(word: str) -> None:
    with pytest.raises(click.NoSuchOption):
        parsed(f"--{word}=true")


def test_only_given_flags_are_passed_on_by_their_field() -> None:
    assert given_flags(parsed()) == {}
    assert given_flags(parsed("--http-port", "0", "--id=x", "--config", "a.yaml")) == {
        "http_port": "0",
        "server_name": "x",
        "config": "a.yaml",
    }


def test_repositories_and_models_may_be_given_again_by_either_name() -> None:
    found = given_flags(parsed("--model-repository=a", "--model-store", "b", "--load-model=x", "--load-model=y"))
    assert found == {"repositories": ("a", "b"), "load_models": ("x", "y")}


@pytest.mark.parametrize("argument", ["--exit-on-error", "--exit-on-error=true", "--exit-on-error=1"])
def test_a_boolean_stands_alone_or_with_its_value(argument: str) -> None:
    assert given_flags(parsed(argument))["exit_on_error"] in ("true", "1")
    assert given_flags(parsed(*argument.split("="), "--id", "x"))["server_name"] == "x"


def test_tritons_names_for_the_same_options() -> None:
    assert given_flags(parsed("--http-address", "::1")) == {"host": "::1"}
    assert given_flags(parsed("--allow-metrics=false")) == {"metrics_port": "-1"}
    assert given_flags(parsed("--allow-metrics=1", "--allow-http", "true")) == {}
    assert given_flags(parsed("--metrics-port", "-1")) == {"metrics_port": "-1"}
    assert given_flags(parsed("--allow-grpc=0")) == {"grpc_port": "-1"}
    assert given_flags(parsed("--allow-grpc", "--grpc-port", "9", "--grpc-address=::1")) == {
        "grpc_port": "9",
        "grpc_host": "::1",
    }


@pytest.mark.parametrize("flag", ["--http-port", "--config", "--model-repository"])
def test_a_flag_without_its_value_is_refused(flag: str) -> None:
    with pytest.raises(click.UsageError, match="requires an argument"):
        parsed(flag)


def test_http_cannot_be_switched_off() -> None:
    with pytest.raises(click.UsageError, match="health and metrics"):
        given_flags(parsed("--allow-http=0"))


def test_each_ignored_flag_has_one_warning() -> None:
    found = parsed("--grpc-max-response-pool-size", "8", "--backend-config=a,b=c", "--backend-config=d,e=f")
    assert ignored_flag_warnings(found) == [
        "--grpc-max-response-pool-size: it has no effect here",
        "--backend-config: it has no effect here",
    ]
    assert given_flags(found) == {}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("--model-repositry", "--model-repository"), ("--htttp-port", "--http-port")]
)
def test_an_unknown_flag_is_refused_with_the_nearest_known_one(wrong: str, meant: str) -> None:
    with pytest.raises(click.NoSuchOption) as caught:
        parsed(wrong, "x")
    assert meant in caught.value.format_message()
