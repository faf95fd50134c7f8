"""Reads YAML files: bounded in size and depth, with the line of each key, all errors reported together.

What the keys mean is defined in server_options.py and model_options.py.
"""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, cast

import yaml

from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed, plain_error

FILE_LIMIT_BYTES: Final = 1 << 20
NOT_REGULAR: Final = "is no regular file"
DEPTH_LIMIT: Final = 16
KEY_LIMIT: Final = 256
REMEMBERED_CHARACTERS: Final = 2048
_TAGS: Final = ("str", "timestamp", "int", "float", "bool", "null", "map", "seq")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Name of a file, and the line of each of its keys."""

    name: str
    lines: Mapping[str, int] = field(default_factory=dict[str, int])

    def place(self, key: str = "") -> str:
        """`file:line: key`; the line is that of the nearest enclosing key whose line is known."""
        above = key
        while above and above not in self.lines:
            cut = max(above.rfind("."), above.rfind("["))
            above = above[:cut] if cut > 0 else ""
        line = f":{self.lines[above]}" if above else ""
        return f"{self.name}{line}: {key}" if key else self.name


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """Contents of a YAML file: `keys` holds str, int, float, bool, None, and lists and mappings of these."""

    source: ConfigSource
    keys: dict[str, Any]  # YAML
    errors: tuple[ConfigError, ...] = ()


def join_key(above: str, key: str) -> str:
    """The path of a nested key: `models`, `bert` is `models.bert`; `inputs`, `[0].name` is `inputs[0].name`."""
    return above + key if key.startswith("[") or not above or not key else f"{above}.{key}"


def read_text(path: str, limit_bytes: int = FILE_LIMIT_BYTES) -> str:
    """The text of a file; InvalidValue if it is unreadable, too large, or not UTF-8. Never blocks, as a pipe would."""
    try:
        with open(path, "rb", opener=_open_regular) as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise InvalidValue(f"cannot be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise InvalidValue(f"is larger than {limit_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidValue(f"is no UTF-8 text: byte {error.start}") from None


def _open_regular(path: str, flags: int) -> int:
    if stat.S_ISREG(os.stat(path).st_mode):  # opening a device may have effects
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise InvalidValue(NOT_REGULAR)


def read_yaml(path: str, name: str, limit_bytes: int = FILE_LIMIT_BYTES) -> YamlDocument:
    """Read a file, which is called `name` in its errors."""
    try:
        return parse_yaml(read_text(path, limit_bytes), name)
    except InvalidValue as error:
        return YamlDocument(ConfigSource(name), {}, tuple(plain_error(name, text) for _, text in error.problems))


def parse_yaml(text: str, name: str) -> YamlDocument:
    """The keys of a YAML text; none if it is empty. Those of a short one are parsed once."""
    if len(text) > REMEMBERED_CHARACTERS:
        return _parse(text, name)
    document = _parse_short(text, name)
    return replace(document, keys=copy.deepcopy(document.keys))


def _parse(text: str, name: str) -> YamlDocument:
    walk = _YamlReader(name)
    value = walk.document(text)
    keys: dict[str, Any] = {}  # YAML
    if isinstance(value, dict):
        keys = cast("dict[str, Any]", value)
    elif value is not None:
        walk.errors.append(ConfigError(name, f"{displayed(value)} is given instead of keys with values"))
    return YamlDocument(ConfigSource(name, walk.lines), keys, tuple(walk.errors))


_parse_short: Final = lru_cache(maxsize=1024)(_parse)
"""A model's own file is read at each load, and is mostly as it was: 2 ms."""


def parse_scalar(text: str) -> Any:  # YAML
    """One value as in a YAML file: `2` is a number, `{A: b}` a mapping. InvalidValue if it is not YAML."""
    walk = _YamlReader("")
    value = walk.document(text)
    if walk.errors:
        raise InvalidValue(*(each.text for each in walk.errors))
    return value


class _YamlReader:
    """Converts YAML nodes into values. PyYAML's own constructor silently accepts duplicate keys, drops the lines, and
    lets a few lines of aliases expand to millions of values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self.errors: list[ConfigError] = []
        self._values: dict[int, Any] = {}  # YAML; by node, so that an alias is not expanded
        self._open: set[int] = set()

    def document(self, text: str) -> Any:  # YAML
        try:
            loader: Any = yaml.SafeLoader(text)  # its stub leaves half of it untyped
            self._construct: Callable[[yaml.Node], Any] = loader.construct_object  # YAML
            node = loader.get_single_node()
            return None if node is None else self._value(node, "", 0)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            self._no_yaml(self.name + line, f"{error.problem or error.context}")
        except yaml.YAMLError as error:
            self._no_yaml(self.name, str(error).splitlines()[0])
        except RecursionError:
            self.errors.append(ConfigError(self.name, "is nested too deeply"))
        return None

    def _no_yaml(self, place: str, reason: str) -> None:
        self.errors.append(ConfigError(place, f"is no YAML: {reason}", f"{place}: is no YAML"))

    def _error(self, node: yaml.Node, key: str, text: str) -> None:
        self.errors.append(ConfigError(f"{self.name}:{node.start_mark.line + 1}" + (f": {key}" if key else ""), text))

    def _value(self, node: yaml.Node, key: str, depth: int) -> Any:  # YAML
        mark = id(node)
        if mark in self._values:
            return self._values[mark]
        if mark in self._open or depth > DEPTH_LIMIT:
            self._error(node, key, "contains itself" if mark in self._open else "is nested too deeply")
            return None
        self._open.add(mark)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in _TAGS:
            self._error(node, key, f"the tag {displayed(node.tag)} is not supported")
            value: Any = None  # YAML
        elif isinstance(node, yaml.MappingNode):
            value = self._mapping(node, key, depth)
        elif isinstance(node, yaml.SequenceNode):
            value = [self._value(each, join_key(key, f"[{at}]"), depth + 1) for at, each in enumerate(node.value)]
        else:
            value = self._scalar(node, key, kind)
        self._open.discard(mark)
        self._values[mark] = value
        return value

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Any]:  # YAML
        found: dict[str, Any] = {}  # YAML
        for each, value in node.value:
            name = each.value if isinstance(each, yaml.ScalarNode) else None
            if name is None or each.tag == "tag:yaml.org,2002:merge":
                self._error(each, key, "a key must be text" if name is None else "merging by << is not supported")
                continue
            if len(name) > KEY_LIMIT:
                self._error(each, key, f"a key of {len(name)} letters")
                continue
            inner = join_key(key, name)
            if name in found:
                self._error(each, inner, f"is a duplicate; first in line {self.lines[inner]}")
                continue
            self.lines[inner] = each.start_mark.line + 1
            found[name] = self._value(value, inner, depth + 1)
        return found

    def _scalar(self, node: yaml.Node, key: str, kind: str) -> Any:  # YAML
        if kind in ("str", "timestamp"):  # dates stay text
            return node.value
        try:
            return self._construct(node)
        except (ValueError, LookupError, yaml.YAMLError):  # an explicit tag that does not match: `!!int x`
            self._error(node, key, f"{displayed(node.value)} is no {kind}")
            return None
