from __future__ import annotations

from mmsup.supervisor.config.yaml_file import REMEMBERED_CHARACTERS, parse_yaml


def test_what_was_parsed_before_is_not_changed_by_who_got_it() -> None:
    first = parse_yaml("a: {b: [1]}", "file")
    first.keys["a"]["b"].append(2)
    assert parse_yaml("a: {b: [1]}", "file").keys == {"a": {"b": [1]}}
    assert parse_yaml("a: {b: [1]}", "other").source.place("a") == "other:1: a"


def test_a_long_text_is_parsed_as_a_short_one() -> None:
    text = f"# {'x' * REMEMBERED_CHARACTERS}\na: 1\n"
    assert parse_yaml(text, "file").keys == {"a": 1}
    assert [str(each) for each in parse_yaml(f"{text}[", "file").errors] == [
        str(each).replace("file:2", "file:3") for each in parse_yaml("# x\na: 1\n[", "file").errors
    ]
