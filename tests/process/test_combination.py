"""The combinations of server options that `--combination` offers."""

from __future__ import annotations

import pytest

from harness.combination import DEFAULT, FLAGS, OTHERS, of_commit
from mmsup.supervisor.cli.main import main


def test_every_combination_but_the_default_has_its_turn() -> None:
    assert sorted(of_commit(f"{number:040x}") for number in range(len(OTHERS))) == sorted(OTHERS)
    assert DEFAULT not in OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_the_options_of_a_combination_exist_and_are_no_defaults(name: str) -> None:
    serve = main.get_command(None, "serve")  # type: ignore[arg-type]  # unread
    assert serve is not None
    options = {option: each for each in serve.params for option in each.opts}
    for flag, value in zip(FLAGS[name][::2], FLAGS[name][1::2], strict=True):
        assert value != options[flag].default
        options[flag].type.convert(value, None, None)
