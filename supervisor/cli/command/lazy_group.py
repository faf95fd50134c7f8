"""A click group that imports each of its commands only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """`lazy` maps the name of each command to its module and its name there."""

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any
    ) -> None:  # click's own parameters
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in self._lazy:
            return None
        module, attribute = self._lazy[cmd_name]
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command), f"{cmd_name} is no command"
        return found
