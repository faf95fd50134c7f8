"""What the server answered, drawn for a person; one function for each verb.

Nothing here asks anything. Members that a server does not send are left empty: the command line may be newer or older
than the server it speaks with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

import click

from mmsup.supervisor.cli.tables import draw
from mmsup.supervisor.cli.text import age, cell, printable
from mmsup.supervisor.config.units import size_text

Json = Mapping[str, Any]  # the server's JSON
_WORKER_COLUMNS: Final = (">PID", ">GENERATION", ">RESTARTS", ">MEMORY=memory_bytes")
_EVENT_COLUMNS: Final = frozenset({"time", "event", "model", "instance", "generation", "text"})
"""Members of an event that have a place of their own in its line."""
_HIDDEN_SPEC_FIELDS: Final = frozenset({"name", "version", "config", "inputs", "outputs"})
"""Members of a specification that are not drawn with it: they stand above or below, or are `/config`'s."""


def status(result: Json) -> None:
    """The server, its processes, its models."""
    ready = "ready" if result.get("ready") else f"not ready: {cell(result.get('reason')) or 'no reason given'}"
    keeper, brain, spare = (_mapping(result, name) for name in ("keeper", "brain", "spare_gateways"))
    _fields(
        {
            "mmsup": f"{cell(result.get('version'))}, {ready}, up {age(result.get('uptime_s'))}",
            "keeper": f"pid {cell(keeper.get('pid'))}",
            "brain": f"pid {cell(brain.get('pid'))}, generation {cell(brain.get('generation'))}",
            **{f"gateway {number}": _gateway(each) for number, each in enumerate(_mappings(result, "gateways"))},
            "spare": f"{cell(spare.get('ready'))} of {cell(spare.get('wanted'))} gateways ready" if spare else "",
            "caps": cell(result.get("isolation")),
            **{name: cell(address) for name, address in _mapping(result, "addresses").items()},
        }
    )
    if _mappings(result, "devices"):
        click.echo()
        devices(result)
    models = _mappings(result, "models")
    if models:
        click.echo()
        _table(
            ["MODEL", "VERSION", "STATE", ">INSTANCE=id", *_WORKER_COLUMNS, "REASON"],
            [row for model in models for row in _model_rows(model)],
        )


def models(result: Json) -> None:
    """`ctl list`."""
    _table(
        ["MODEL=name", "WANTED", "STATE", "VERSIONS", "ENGINE", ">INSTANCES", "REASON"],
        [{**each, "versions": _versions(each)} for each in _mappings(result, "models")],
    )


def processes(result: Json) -> None:
    """`ctl ps`."""
    memory = (">MEMORY=memory_bytes", ">CAP=memory_cap_bytes")
    _table(
        ["NAME", "ROLE", "STATE", ">PID", *memory, ">GENERATION", ">RESTARTS", ">REQUESTS", ">UP=uptime_s"],
        [{**each, "name": _process_name(each)} for each in _mappings(result, "processes")],
    )


def changed(result: Json) -> None:
    """What a load or unload came to."""
    versions = _versions(result)
    seconds = result.get("seconds")
    after = f" after {age(seconds)}" if isinstance(seconds, int | float) else ""
    click.echo(f"{cell(result.get('name'))}: {cell(result.get('state'))}{after}{f' ({versions})' if versions else ''}")


def upgraded(result: Json) -> None:
    """What an upgrade came to."""
    seconds = result.get("seconds")
    after = f" after {age(seconds)}" if isinstance(seconds, int | float) else ""
    click.echo(
        f"upgraded{after}: {cell(result.get('followed'))} processes followed, keeper: {cell(result.get('keeper'))}"
    )


def quarantine(result: Json) -> None:
    """`ctl quarantine list`."""
    _table(["MODEL", "VERSION", "STATE", ">DEATHS", ">LEFT=left_s", "FINGERPRINT"], _mappings(result, "requests"))


def cleared(result: Json) -> None:
    """`ctl quarantine clear`."""
    click.echo(f"{cell(result.get('model')) or 'all models'}: {cell(result.get('cleared') or 0)} blocked, now free")


def devices(result: Json) -> None:
    """`ctl devices list`."""
    draw(
        ["DEVICE", "NAME", "STATE", ">MEMORY", ">TOTAL", ">SEEN", ">WORKERS", "UUID", "REASON"],
        [
            [
                cell(each.get("device")),
                cell(each.get("name")),
                "set aside" if each.get("set_aside") else "stale" if each.get("stale") else "open",
                _size(each.get("memory_used_bytes")),
                _size(each.get("memory_total_bytes")),
                age(each.get("age_s")),
                cell(each.get("workers")),
                cell(each.get("uuid")),
                cell(each.get("reason")),
            ]
            for each in _mappings(result, "devices")
        ],
    )


def released(result: Json) -> None:
    """`ctl devices release`."""
    freed = [cell(each) for each in result.get("released") or ()]
    click.echo("\n".join(f"{each}: open again" for each in freed) or "nothing was set aside there")


def model(result: Json) -> None:
    """`ctl show`: everything about one model."""
    _fields(
        {
            "model": cell(result.get("name")),
            "wanted": cell(result.get("wanted")),
            "state": cell(result.get("state")),
            "reason": cell(result.get("reason")),
        }
    )
    for spec in _mappings(result, "specs"):
        click.echo(f"\nversion {cell(spec.get('version'))}")
        _fields({name: _option(name, spec[name]) for name in spec if name not in _HIDDEN_SPEC_FIELDS}, indent="  ")
    metadata = _mapping(result, "metadata")
    batch = [-1] if metadata.get("max_batch_size") else []
    for side in ("inputs", "outputs"):
        for tensor in _mappings(metadata, side):
            shape = [*batch, *(tensor.get("shape") or ())]
            click.echo(f"{side[:-1]:<6}  {cell(tensor.get('name'))}  {cell(tensor.get('datatype'))}  {_value(shape)}")
    _section("instances", _mappings(result, "instances"), instances)
    for fault in result.get("faults") or ():
        click.echo(f"fault   {_fault(fault)}")
    story = _mappings(result, "story")
    if story:
        click.echo("\nstory")
        for each in story:
            click.echo(f"  {event(each)}")


def why(result: Json) -> None:
    """`ctl why`: the sentences, then which other deaths there are."""
    for sentence in result.get("sentences") or ():
        click.echo(cell(sentence))
    deaths = _mappings(result, "deaths")
    if len(deaths) > 1:
        click.echo()
        _table(
            [">DEATH", "TIME", "VERSION", ">INSTANCE", ">GENERATION", "CAUSE"],
            [{**each, "death": place, "time": _local_time(each.get("time"))} for place, each in enumerate(deaths, 1)],
        )


def instances(rows: Sequence[Json]) -> None:
    """The workers of one model."""
    _table([">INSTANCE=id", "VERSION", "STATE", *_WORKER_COLUMNS], rows)


def event(told: Json) -> str:
    """One event as one line: when, what, to whom, why, then whatever else it says."""
    life = ".".join(cell(told[name]) for name in ("instance", "generation") if told.get(name) is not None)
    who = " ".join(filter(None, (cell(told.get("model")), f"#{life}" if life else "")))
    fields = {name: _option(name, told[name]) for name in told if name not in _EVENT_COLUMNS}
    rest = [f"{printable(name)}={value}" for name, value in fields.items() if value]
    parts = (_local_time(told.get("time")), f"{cell(told.get('event')):<16}", who, cell(told.get("text")), *rest)
    return "  ".join(filter(None, parts))


def _table(columns: Sequence[str], rows: Iterable[Json]) -> None:
    """Columns are `HEADING=member`, or `HEADING` of a member that is called so; `>` as in tables.py."""
    parted = [each.partition("=") for each in columns]
    members = [member or heading.removeprefix(">").lower() for heading, _, member in parted]
    draw([heading for heading, _, _ in parted], [[_cell_text(name, row.get(name)) for name in members] for row in rows])


def _cell_text(name: str, value: Any) -> str:  # anything that JSON holds
    return age(value) if name.endswith("_s") else _option(name, value)


def _local_time(value: object) -> str:
    """An ISO time as the reader's own, to the millisecond."""
    try:
        return datetime.fromisoformat(str(value)).astimezone().isoformat(" ", "milliseconds")[:23]
    except ValueError:
        return cell(value)


def _fields(fields: Mapping[str, str], indent: str = "") -> None:
    shown = {name: value for name, value in fields.items() if value}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        click.echo(f"{indent}{printable(name):<{width}}  {value}")


def _section(title: str, rows: Sequence[Json], show: Any) -> None:  # a function of rows
    if rows:
        click.echo(f"\n{title}")
        show(rows)


def _gateway(each: Json) -> str:
    return f"pid {cell(each.get('pid'))}, generation {cell(each.get('generation'))}"


def _model_rows(model: Json) -> Iterator[Json]:
    of_model = {"model": model.get("name"), "reason": model.get("reason")}
    for each in _mappings(model, "instances") or [{"state": model.get("state")}]:
        yield {**each, **of_model}


def _process_name(each: Json) -> str:
    model = cell(each.get("model"))
    if not model:
        return " ".join(filter(None, (cell(each.get("role")), cell(each.get("id")))))
    return f"{model}/{cell(each.get('version'))} #{cell(each.get('id'))}"


def _versions(of: Json) -> str:
    versions = of.get("versions")
    if isinstance(versions, Mapping):
        return ", ".join(f"{cell(number)} {cell(state)}" for number, state in cast("Json", versions).items())
    return ", ".join(cell(each) for each in versions or ())


def _fault(fault: Any) -> str:  # a text, or a place with a text
    if isinstance(fault, Mapping):
        told = cast("Json", fault)
        return f"{cell(told.get('place'))}: {cell(told.get('text'))}"
    return cell(fault)


def _size(size_bytes: Any) -> str:  # anything that JSON holds
    return size_text(size_bytes) if isinstance(size_bytes, int) else ""


def _option(name: str, value: Any) -> str:  # anything that JSON holds
    return _size(value) if name.endswith("_bytes") else _value(value)


def _value(value: Any) -> str:  # anything that JSON holds
    if isinstance(value, dict | list):
        return printable(json.dumps(value)) if value else ""
    return cell(value)


def _mapping(of: Json, name: str) -> Json:
    part = of.get(name)
    return cast("Json", part) if isinstance(part, Mapping) else {}


def _mappings(of: Json, name: str) -> list[Json]:
    parts = of.get(name)
    listed = cast("list[object]", parts) if isinstance(parts, list) else []
    return [cast("Json", each) for each in listed if isinstance(each, Mapping)]
