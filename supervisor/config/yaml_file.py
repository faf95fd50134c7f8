"""A text file of configuration: bounded, and each of its keys knows its line.

Covers: reading a file up to a limit; YAML as plain values. Every trouble with the file is a Fault, all of them at once.
Does not cover: what the keys mean (config.py, keys.py); config.pbtxt (pbtxt.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import yaml

from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed

FILE_LIMIT_BYTES: Final = 1 << 20
NOT_REGULAR: Final = "is no plain file"
DEPTH_LIMIT: Final = 16
KEY_LIMIT: Final = 256
_TAGS: Final = ("str", "timestamp", "int", "float", "bool", "null", "map", "seq")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A file by the name that people know it by, and where its keys stand."""

    name: str
    lines: Mapping[str, int] = field(default_factory=dict[str, int])

    def place(self, key: str = "") -> str:
        """`file:line: key`; the line is that of the nearest key above whose line is known."""
        above = key
        while above and above not in self.lines:
            cut = max(above.rfind("."), above.rfind("["))
            above = above[:cut] if cut > 0 else ""
        line = f":{self.lines[above]}" if above else ""
        return f"{self.name}{line}: {key}" if key else self.name


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """What a YAML file says: `keys` holds str, int, float, bool, None, lists and mappings of these with text keys."""

    source: ConfigSource
    keys: dict[str, Any]  # YAML
    errors: tuple[ConfigError, ...] = ()


def join_key(above: str, key: str) -> str:
    """The key of something inside: `models`, `bert` is `models.bert`; `inputs`, `[0].name` is `inputs[0].name`."""
    return above + key if key.startswith("[") or not above or not key else f"{above}.{key}"


def read_text(path: str, limit_bytes: int = FILE_LIMIT_BYTES) -> str:
    """The text of a file; Wrong if it is unreadable, too large, or no UTF-8. Does not wait, as a pipe does."""
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
    if stat.S_ISREG(os.stat(path).st_mode):  # a socket refuses to be opened, and a device may feel it
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise InvalidValue(NOT_REGULAR)


def read_yaml(path: str, name: str, limit_bytes: int = FILE_LIMIT_BYTES) -> YamlDocument:
    """A YAML file, called `name` in its faults."""
    try:
        return parse_yaml(read_text(path, limit_bytes), name)
    except InvalidValue as wrong:
        return YamlDocument(ConfigSource(name), {}, tuple(ConfigError(name, text) for _, text in wrong.problems))


def parse_yaml(text: str, name: str) -> YamlDocument:
    """The keys of a YAML text; an empty one has none."""
    walk = _YamlReader(name)
    value = walk.document(text)
    keys: dict[str, Any] = {}  # YAML
    if isinstance(value, dict):
        keys = cast("dict[str, Any]", value)
    elif value is not None:
        walk.errors.append(ConfigError(name, f"{displayed(value)} stands where keys with values should"))
    return YamlDocument(ConfigSource(name, walk.lines), keys, tuple(walk.errors))


def parse_scalar(text: str) -> Any:  # YAML
    """What a YAML file would take this one value for: `2` is a number, `{A: b}` a mapping. Wrong if it is no YAML."""
    walk = _YamlReader("")
    value = walk.document(text)
    if walk.errors:
        raise InvalidValue(*(each.text for each in walk.errors))
    return value


class _YamlReader:
    """From YAML's nodes to values. The library's own constructor takes the last of equal keys without a word, loses
    the lines, and lets a few lines of aliases stand for millions of values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self.errors: list[ConfigError] = []
        self._values: dict[int, Any] = {}  # YAML; by node, so that an alias costs nothing
        self._open: set[int] = set()

    def document(self, text: str) -> Any:  # YAML
        """The value of the one document in the text."""
        try:
            loader: Any = yaml.SafeLoader(text)  # its stub leaves half of it untyped
            self._construct: Callable[[yaml.Node], Any] = loader.construct_object  # YAML
            node = loader.get_single_node()
            return None if node is None else self._value(node, "", 0)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            self.errors.append(ConfigError(self.name + line, f"is no YAML: {error.problem or error.context}"))
        except yaml.YAMLError as error:
            self.errors.append(ConfigError(self.name, f"is no YAML: {str(error).splitlines()[0]}"))
        except RecursionError:
            self.errors.append(ConfigError(self.name, "is nested too deeply"))
        return None

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
            self._error(node, key, f"the tag {displayed(node.tag)} is not read here")
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
            word = each.value if isinstance(each, yaml.ScalarNode) else None
            if word is None or each.tag == "tag:yaml.org,2002:merge":
                self._error(each, key, "a key is a word" if word is None else "merging by << is not read here")
                continue
            if len(word) > KEY_LIMIT:
                self._error(each, key, f"a key of {len(word)} letters")
                continue
            inner = join_key(key, word)
            if word in found:
                self._error(each, inner, f"stands twice; first in line {self.lines[inner]}")
                continue
            self.lines[inner] = each.start_mark.line + 1
            found[word] = self._value(value, inner, depth + 1)
        return found

    def _scalar(self, node: yaml.Node, key: str, kind: str) -> Any:  # YAML
        if kind in ("str", "timestamp"):  # what looks like a date is the text that stands there
            return node.value
        try:
            return self._construct(node)
        except (ValueError, LookupError, yaml.YAMLError):  # only where a tag is written out, and lies: `!!int x`
            self._error(node, key, f"{displayed(node.value)} is no {kind}")
            return None
