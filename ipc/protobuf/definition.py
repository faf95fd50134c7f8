"""Makes protobuf descriptors of compact tables of names, numbers and types.

A table has one line for each message, `name number type`, where the type may be a scalar of protobuf, an enum or a
message of the same file, or a message of another file by its full name; `*` repeated, `|` in a oneof, `{}` a map of
strings to that type, `{uint64}` with another key.

The descriptors are in a pool of their own: another library in the same process may define the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

_FIELD: Final = re.compile(r"(\w+) (\d+) (stream )?([\w.]+)(\*|\||\{(\w*)\})?")
_SCALARS: Final = frozenset(["double", "float", "int64", "uint64", "int32", "uint32", "bool", "string", "bytes"])


def make_file(
    name: str,
    package: str,
    messages: Mapping[str, str],
    enums: Mapping[str, str] | None = None,
    *,
    syntax: str = "proto2",
    imports: tuple[str, ...] = (),
    services: Mapping[str, Mapping[str, str]] | None = None,
) -> FileDescriptorProto:
    """The file `name`. `enums`: the values of each, numbered from 0. `services`: their methods, as
    `REQUEST REPLY`, each after `stream ` if it is a stream."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: PLC0415 - 30 ms for who needs none

    file = FileDescriptorProto(name=name, package=package, syntax=syntax, dependency=imports)
    for enum_name, words in (enums or {}).items():
        enum = file.enum_type.add(name=enum_name)
        for number, word in enumerate(words.split()):
            enum.value.add(name=word, number=number)
    for message, text in messages.items():
        _define(file, message, text, frozenset(enums or ()))
    for service, methods in (services or {}).items():
        defined = file.service.add(name=service)
        for method, kinds in methods.items():
            request, reply = re.findall(r"(stream )?([\w.]+)", kinds)
            defined.method.add(
                name=method,
                input_type=_full_name(package, request[1]),
                output_type=_full_name(package, reply[1]),
                client_streaming=bool(request[0]),
                server_streaming=bool(reply[0]),
            )
    return file


def _define(file: FileDescriptorProto, name: str, text: str, enums: frozenset[str]) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field  # noqa: PLC0415 - as above

    message = file.message_type.add(name=name)
    for word, number, _, kind, mark, key in _FIELD.findall(text):
        field = message.field.add(name=word, number=int(number), label=Field.LABEL_OPTIONAL)
        if mark == "*":
            field.label = Field.LABEL_REPEATED
        if mark == "|":
            if not message.oneof_decl:
                message.oneof_decl.add(name="choice")
            field.oneof_index = 0
        if mark.startswith("{"):
            entry = message.nested_type.add(name=word.title().replace("_", "") + "Entry")
            entry.options.map_entry = True
            _set_type(
                entry.field.add(name="key", number=1, label=Field.LABEL_OPTIONAL), key or "string", file.package, enums
            )
            _set_type(entry.field.add(name="value", number=2, label=Field.LABEL_OPTIONAL), kind, file.package, enums)
            field.label = Field.LABEL_REPEATED
            _set_type(field, f"{name}.{entry.name}", file.package, enums)
        else:
            _set_type(field, kind, file.package, enums)


def _set_type(field: Any, kind: str, package: str, enums: frozenset[str]) -> None:  # a FieldDescriptorProto
    if kind in _SCALARS:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    elif kind in enums:
        field.type, field.type_name = field.TYPE_ENUM, f".{package}.{kind}"
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, _full_name(package, kind)


def _full_name(package: str, kind: str) -> str:
    """A name with a dot whose first part is lower case is that of another package."""
    return f".{kind}" if "." in kind and kind[0].islower() else f".{package}.{kind}"
