"""Descriptors among arguments."""

from __future__ import annotations

from mmsup.ipc.transport.inherited_fds import parse_inherited_fds


def test_only_arguments_of_the_form_name_and_number_count() -> None:
    arguments = ["--label", "m=x/1#2", "control=6", "listen:http=7", "tally:12=8", "page=", "=3", "a=1b", "lifeline=5"]
    assert parse_inherited_fds(arguments) == {"control": 6, "listen:http": 7, "tally:12": 8, "lifeline": 5}
