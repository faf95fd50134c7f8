"""Parses config.pbtxt, or the same as JSON, into a dict and the line of each key.

The message definition (ipc/protobuf/model_config.py) is registered in a private pool, since tritonclient and others may
register their own. As in proto2 every field has presence: `max_batch_size: 0` differs from a missing field. protobuf is
imported when the first such file is read.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from mmsup.ipc.protobuf.model_config import PACKAGE, model_config_file
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, unknown_name
from mmsup.supervisor.config.yaml_file import ConfigSource, join_key

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message
    from google.protobuf.text_format import Tokenizer

TEXT_LIMIT: Final = 300
NO_CONFIGURATION: Final = "is no text of a model configuration"


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    """A ModelConfig with only the fields that are present. Enums are names, 64-bit numbers are numbers."""

    source: ConfigSource
    config: dict[str, Any]  # ModelConfig as JSON
    errors: tuple[ConfigError, ...] = ()


def read_pbtxt(text: str, name: str) -> ParsedConfig:
    """Parse a text, which is called `name` in its errors: either all unknown keys, or the first syntax error."""
    from google.protobuf import text_format  # noqa: PLC0415 - 30 ms that a server without such files saves

    message = _message_class()()
    try:
        text_format.Parse(text, message, allow_unknown_field=True)
    except text_format.ParseError as error:
        line = error.GetLine()
        where = f"{name}:{line}" if line else name
        problem = ConfigError(where, _clean_message(str(error)), f"{where}: {NO_CONFIGURATION}")
        return ParsedConfig(ConfigSource(name), {}, (problem,))
    except (RecursionError, ValueError, AssertionError) as error:
        # The library raises them on unusual text: an extension's name, an octal escape above 255.
        problem = ConfigError(name, f"{NO_CONFIGURATION}: {_clean_message(str(error))}", f"{name}: {NO_CONFIGURATION}")
        return ParsedConfig(ConfigSource(name), {}, (problem,))
    keys = _KeyLines(name, text_format.Tokenizer(text.split("\n")))
    keys.fields(message_descriptor(), "", "")
    return ParsedConfig(ConfigSource(name, keys.lines), _to_json(message), tuple(keys.errors))


def read_json(text: str, name: str) -> ParsedConfig:
    """The same from the JSON of a load request, in which numbers may be strings."""
    from google.protobuf import json_format  # noqa: PLC0415 - as above

    message = _message_class()()
    try:
        if not text.lstrip().startswith("{"):
            raise json_format.ParseError("it must be a JSON object, {…}")
        json_format.Parse(text, message)
    except (json_format.ParseError, ValueError, RecursionError, AttributeError, TypeError) as error:
        # ParseError is documented; the library raises the others too.
        text = f"is no model configuration: {_clean_message(str(error))}"
        return ParsedConfig(ConfigSource(name), {}, (ConfigError(name, text),))
    return ParsedConfig(ConfigSource(name), _to_json(message))


def as_pbtxt(text: str, name: str) -> str:
    """The JSON of a load request as the text of a config.pbtxt; InvalidValue if it is no model configuration."""
    from google.protobuf import json_format, text_format  # noqa: PLC0415 - as above

    errors = read_json(text, name).errors
    if errors:
        raise InvalidValue(errors[0].text)
    return str(text_format.MessageToString(json_format.Parse(text, _message_class()())))


def _clean_message(text: str) -> str:
    """A message of the library without its line numbers and our package name."""
    words = re.sub(r"^\d+:\d+ : ('.*': )?", "", text, count=1, flags=re.DOTALL).replace(f"{PACKAGE}.", "").strip()
    plain = "".join(each if each.isprintable() else " " for each in words)
    return plain if len(plain) <= TEXT_LIMIT else plain[:TEXT_LIMIT] + "…"


# The message definition.


@functools.cache
def _message_class() -> type[Message]:
    from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415 - as above

    pool = descriptor_pool.DescriptorPool()
    pool.Add(model_config_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ModelConfig"))


def message_descriptor() -> Descriptor:
    return cast("Descriptor", _message_class().DESCRIPTOR)


# From a message to plain values.


def _to_json(message: Message) -> dict[str, Any]:  # ModelConfig as JSON
    return {field.name: _field_to_json(field, value) for field, value in message.ListFields()}


def _field_to_json(field: FieldDescriptor, value: Any) -> Any:  # the value of any field, as JSON
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        kind = inner.fields_by_name["value"]
        return {str(key): _value_to_json(kind, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value_to_json(field, each) for each in value]
    return _value_to_json(field, value)


def _value_to_json(field: FieldDescriptor, value: Any) -> Any:  # one value, as JSON
    if field.message_type is not None:
        return _to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


# The lines of the keys.


class _KeyLines:
    """Finds the line of each key, and unknown keys, with the library's tokenizer, in texts that it has accepted."""

    def __init__(self, name: str, tokens: Tokenizer) -> None:
        self.name = name
        self.tokens = tokens
        self.lines: dict[str, int] = {}
        self.errors: list[ConfigError] = []

    def line(self) -> int:
        """The line of the next token, which the tokenizer exposes only in its errors."""
        return self.tokens.ParseError(cast("Any", "")).GetLine() or 0  # its stub wants a message for a text

    def fields(self, kind: Descriptor | None, above: str, end: str) -> None:
        """Read fields up to the token `end`, of a message of type `kind`, or of an unknown one."""
        counts: dict[str, int] = {}
        is_map = kind is not None and kind.GetOptions().map_entry
        while not self.tokens.AtEnd() and self.tokens.token != end:
            word = self.tokens.token
            key = join_key(above, word)
            self.lines.setdefault(key, self.line())
            self.tokens.NextToken()
            field = None if kind is None else kind.fields_by_name.get(word)
            if kind is not None and field is None:
                place = f"{self.name}:{self.lines[key]}: {key}"
                self.errors.append(ConfigError(place, unknown_name(word, kind.fields_by_name)))
            self.tokens.TryConsume(":")
            if is_map and word == "key":  # so that `parameters[2]` is found as `parameters.NAME` too
                self.lines[join_key(above[: above.rfind("[")], self.tokens.token.strip("'\""))] = self.line()
            self._value(field, key, counts)
            if not self.tokens.TryConsume(","):
                self.tokens.TryConsume(";")

    def _value(self, field: FieldDescriptor | None, key: str, counts: dict[str, int]) -> None:
        many = self.tokens.TryConsume("[")
        while not (many and self.tokens.token == "]") and not self.tokens.AtEnd():  # noqa: S105 - a token of a text
            here = key
            if field is not None and field.is_repeated:
                here = f"{key}[{counts.get(key, 0)}]"
                counts[key] = counts.get(key, 0) + 1
            self.lines.setdefault(here, self.line())
            self._one(None if field is None else field.message_type, here)
            if not many:
                return
            self.tokens.TryConsume(",")
        self.tokens.TryConsume("]")

    def _one(self, kind: Descriptor | None, key: str) -> None:
        for begin, end in (("{", "}"), ("<", ">")):
            if self.tokens.TryConsume(begin):
                self.fields(kind, key, end)
                self.tokens.TryConsume(end)
                return
        quoted = self._is_quoted()
        self.tokens.TryConsume("-")
        self.tokens.NextToken()
        while quoted and self._is_quoted():  # adjacent strings are one
            self.tokens.NextToken()

    def _is_quoted(self) -> bool:
        return self.tokens.token[:1] in ("'", '"')
