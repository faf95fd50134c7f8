"""Prints the results of `mmsup ctl` as text: one function for each command.

Members that the result lacks are left empty: the command line may be newer or older than the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

import click

from mmsup.supervisor.cli.output.tables import draw
from mmsup.supervisor.cli.output.text import cell, printable
from mmsup.supervisor.config.units import age, size_text

Json = Mapping[str, Any]  # the server's JSON
_WORKER_COLUMNS: Final = (">PID", ">GENERATION", ">RESTARTS", ">MEMORY=memory_bytes")
_FOOTPRINT_COLUMNS: Final = (
    "VERSION",
    "ENGINE",
    "DEVICE",
    ">LOAD=load_peak_bytes",
    ">SETTLED=settled_bytes",
    ">SERVING=serving_peak_bytes",
    ">GPU=gpu",
    ">TIME=load_s",
)
_MOVE_COLUMNS: Final = (">OFFLOADED=offloaded_bytes", ">GPU THEN=gpu_offloaded_bytes", ">WAKE=restore_s")
"""Of models that were in host memory."""
_EVENT_COLUMNS: Final = frozenset({"time", "event", "model", "instance", "generation", "text"})
"""Members of an event with a fixed position in its line; the others follow as `name=value`."""
_HIDDEN_SPEC_FIELDS: Final = frozenset({"name", "version", "config", "inputs", "outputs", "steps"})
"""Members of a model's specification that are shown elsewhere, or only by the HTTP API (`/config`)."""


def status(result: Json) -> None:
    ready = "ready" if result.get("ready") else f"not ready: {cell(result.get('reason')) or 'no reason given'}"
    keeper, spare = _mapping(result, "keeper"), _mapping(result, "spare_gateways")
    standby = f"{cell(spare.get('ready'))} of {cell(spare.get('wanted'))} gateways ready" if spare else ""
    controller = _mapping(result, "controller") or _mapping(result, "brain")  # an older server sends `brain` alone
    _fields(
        {
            "mmsup": f"{cell(result.get('version'))}, {ready}, up {age(result.get('uptime_s'))}",
            "keeper": f"pid {cell(keeper.get('pid'))}",
            "controller": _process(controller),
            **{f"gateway {number}": _process(each) for number, each in enumerate(_mappings(result, "gateways"))},
            "standby": standby,
            "caps": cell(result.get("isolation")),
            **_memory(result),
            "kept aside": _kept_aside(result),
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
        for line in _groups(models):
            click.echo(line)


def _memory(result: Json) -> dict[str, str]:
    """Of each pool of memory the sum that workers hold, against its budget."""
    rows = _mappings(_mapping(result, "memory"), "pools")
    return {cell(each.get("memory")): _pool(each) for each in rows}


def _pool(row: Json) -> str:
    kind = "" if row.get("configured") else " by default"
    sizes = {name: row.get(f"{name}_bytes") for name in ("loading", "leaving")}
    moving = "".join(f", {size_text(size)} of it {name}" for name, size in sizes.items() if size)
    in_use, budget = size_text(row.get("in_use_bytes") or 0), size_text(row.get("budget_bytes") or 0)
    return f"workers hold {in_use}{moving}; the budget is {budget}{kind}"


def _kept_aside(result: Json) -> str:
    names = result.get("state_kept_aside")
    if not isinstance(names, list) or not names:
        return ""
    return f"could not be read, see `mmsup ctl events`: {', '.join(map(cell, names))} in the state directory"


def models(result: Json) -> None:
    listed = _mappings(result, "models")
    group = ["GROUP"] if any(each.get("group") for each in listed) else []
    _table(
        [
            *("MODEL=name", "WANTED", "STATE", "VERSIONS", "ENGINE", ">INSTANCES", ">USED=last_use_s", ">RETURN"),
            *(*group, "REASON"),
        ],
        [_list_row(each) for each in listed],
    )
    for name, text in _memory(result).items():
        click.echo(f"{name}: {text}")


def _list_row(each: Json) -> Json:
    """`return`: how long a request that finds the model asleep is likely to wait."""
    return {**each, "versions": _versions(each), "return": age(each.get("cold_start_s")) or "-"}


def processes(result: Json) -> None:
    memory = (">MEMORY=memory_bytes", ">CAP=memory_cap_bytes")
    _table(
        ["NAME", "ROLE", "STATE", ">PID", *memory, ">GENERATION", ">RESTARTS", ">REQUESTS", ">UP=uptime_s"],
        map(_process_row, _mappings(result, "processes")),
    )


def changed(result: Json) -> None:
    versions = _versions(result)
    versions = f" ({versions})" if versions else ""
    click.echo(f"{cell(result.get('name'))}: {cell(result.get('state'))}{_duration(result)}{versions}")


def unloaded(result: Json) -> None:
    click.echo(f"{cell(result.get('name'))}: unloaded{_duration(result)}")


def asleep(result: Json) -> None:
    click.echo(f"{cell(result.get('name'))}: asleep{_duration(result)}; its next request has it back")


def upgraded(result: Json) -> None:
    replaced, keeper = cell(result.get("followed")), cell(result.get("keeper"))
    click.echo(f"upgraded{_duration(result)}: {replaced} processes replaced, keeper: {keeper}")


def quarantine(result: Json) -> None:
    _table(["MODEL", "VERSION", "STATE", ">DEATHS", ">LEFT=left_s", "FINGERPRINT"], _mappings(result, "requests"))


def cleared(result: Json) -> None:
    click.echo(f"{cell(result.get('model')) or 'all models'}: {cell(result.get('cleared') or 0)} blocked, now free")


def devices(result: Json) -> None:
    memory = (">MEMORY=memory_used_bytes", ">TOTAL=memory_total_bytes")
    _table(
        ["DEVICE", "NAME", "STATE", *memory, ">SEEN=age_s", ">WORKERS", "CAPS", "UUID", "REASON"],
        [
            {
                **each,
                "state": "set aside" if each.get("set_aside") else "stale" if each.get("stale") else "open",
                "caps": " ".join(each.get("rings") or ()),
            }
            for each in _mappings(result, "devices")
        ],
        f"no GPU here: {cell(result.get('why')) or 'the server knows none'}",
    )
    holders = [{**each, "device": row.get("device")} for row in _mappings(result, "devices") for each in _holders(row)]
    if holders and "models" not in result:  # of the status
        click.echo()
        _table(["DEVICE", "MODEL", ">PID", ">HELD=held_bytes", "AS=source", ">GPU_MEMORY=gpu_memory_bytes"], holders)


def _holders(device: Json) -> list[Json]:
    """Who holds memory of a device, the rest last."""
    held = [
        {**each, "model": f"{cell(each.get('model'))}/{cell(each.get('version'))}"}
        for each in _mappings(device, "held_by")
    ]
    others = device.get("held_by_others_bytes")
    return [*held, *([{"model": "(others)", "held_bytes": others}] if others else [])]


def released(result: Json) -> None:
    freed = [cell(each) for each in result.get("released") or ()]
    click.echo("\n".join(f"{each}: open again" for each in freed) or "nothing was set aside there")


def model(result: Json) -> None:
    names = {"model": "name", "wanted": "wanted", "state": "state", "reason": "reason", "group": "group"}
    if result.get("asleep_in") == "host-memory":
        names |= {"asleep in": "asleep_in"}
    times = {"asleep for": "asleep_s", "last used": "last_use_s", "load takes": "cold_start_s"}
    _fields(
        {name: cell(result.get(member)) for name, member in names.items()}
        | {name: age(result.get(member)) for name, member in times.items()}
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
    steps = _mappings(result, "steps")
    if steps:
        click.echo("\nsteps")
        _table(["MODEL", "STATE", "REASON"], steps)
    footprints = _mappings(result, "footprints")
    if footprints:
        click.echo("\nfootprint")
        has_moved = any(each.get("offloaded_bytes") for each in footprints)
        columns = (*_FOOTPRINT_COLUMNS, *(_MOVE_COLUMNS if has_moved else ()))
        _table(columns, [{**each, **_of_device(each)} for each in footprints])
    instances = _mappings(result, "instances")
    if instances:
        click.echo("\ninstances")
        _table([">INSTANCE=id", "VERSION", "STATE", *_WORKER_COLUMNS, "START"], instances)
        for line in _groups([result]):
            click.echo(line)
    for fault in result.get("faults") or ():
        click.echo(f"fault   {_fault(fault)}")
        for line in str(_mapping({"fault": fault}, "fault").get("paste", "")).splitlines():
            click.echo(f"    {printable(line)}")
    recent = _mappings(result, "story")
    if recent:
        click.echo("\nrecent events")
        for each in recent:
            click.echo(f"  {event(each)}")


def _of_device(row: Json) -> Json:
    held = max(row.get(f"gpu_{name}_bytes") or 0 for name in ("load_peak", "settled", "serving_peak"))
    return {"gpu": size_text(held) if held else ""}


def why(result: Json) -> None:
    """`ctl why`: the explanation, then the list of deaths on record."""
    for sentence in result.get("sentences") or ():
        click.echo(cell(sentence))
    deaths = _mappings(result, "deaths")
    if len(deaths) > 1:
        click.echo()
        _table(
            [">DEATH", "TIME", "VERSION", ">INSTANCE", ">GENERATION", "CAUSE"],
            [{**each, "death": place, "time": _local_time(each.get("time"))} for place, each in enumerate(deaths, 1)],
        )


def event(raw: Json) -> str:
    """One event as one line: time, name, model and worker, text, the other members."""
    worker = ".".join(cell(raw[name]) for name in ("instance", "generation") if raw.get(name) is not None)
    subject = " ".join(filter(None, (cell(raw.get("model")), f"#{worker}" if worker else "")))
    fields = {name: _option(name, raw[name]) for name in raw if name not in _EVENT_COLUMNS}
    rest = [f"{printable(name)}={value}" for name, value in fields.items() if value]
    parts = (_local_time(raw.get("time")), f"{cell(raw.get('event')):<16}", subject, cell(raw.get("text")), *rest)
    return "  ".join(filter(None, parts))


def _table(columns: Sequence[str], rows: Iterable[Json], if_empty: str = "none") -> None:
    """Columns are `HEADING=member`, or `HEADING` if the member has the same name; `>` as in tables.py."""
    parted = [each.partition("=") for each in columns]
    members = [member or heading.removeprefix(">").lower() for heading, _, member in parted]
    cells = [[_cell_text(name, row.get(name)) for name in members] for row in rows]
    draw([heading for heading, _, _ in parted], cells) if cells else click.echo(if_empty)


def _cell_text(name: str, value: Any) -> str:  # anything that JSON holds
    return age(value) if name.endswith("_s") else _option(name, value)


def _local_time(value: object) -> str:
    """An ISO time in the local time zone, to the millisecond."""
    try:
        return datetime.fromisoformat(str(value)).astimezone().isoformat(" ", "milliseconds")[:23]
    except ValueError:
        return cell(value)


def _fields(fields: Mapping[str, str], indent: str = "") -> None:
    shown = {name: value for name, value in fields.items() if value}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        click.echo(f"{indent}{printable(name):<{width}}  {value}")


def _duration(result: Json) -> str:
    seconds = result.get("seconds")
    return f" after {age(seconds)}" if isinstance(seconds, int | float) else ""


def _process(each: Json) -> str:
    return f"pid {cell(each.get('pid'))}, generation {cell(each.get('generation'))}"


def _model_rows(model: Json) -> Iterator[Json]:
    of_model = {"model": model.get("name"), "reason": model.get("reason")}
    for each in _mappings(model, "instances") or [{"state": model.get("state")}]:
        yield {**each, **of_model}


def _groups(models: Iterable[Json]) -> Iterator[str]:
    """A line for each process that models share."""
    said: set[str] = set()
    rows = [(model, each) for model in models for each in _mappings(model, "instances")]
    for of, each in rows:
        pid, beside = cell(each.get("pid")), each.get("shares_with")
        if not isinstance(beside, list) or not pid or pid in said:
            continue
        said.add(pid)
        name = f"{cell(of.get('name'))}/{cell(each.get('version'))}"
        members = ", ".join(sorted([name, *map(cell, beside)]))
        yield f"group {cell(of.get('group'))}: pid {pid} is the process of {members}; what ends it ends it for all"


def _process_row(each: Json) -> Json:
    """In words for people: the JSON still says `brain` for the controller, and `spare` for the standby."""
    role, model = cell(each.get("role")), cell(each.get("model"))
    role = "controller" if role == "brain" else role
    number = cell(each.get("seat", each.get("id")) if role == "gateway" else each.get("id") or "")
    name = f"{model}/{cell(each.get('version'))} #{number}" if model else f"{role} {number}".strip()
    row = {**each, "role": role, "name": name}
    if role == "gateway" and "seat" in each:  # its generation counts the starts of all gateways, not those of the seat
        row["restarts"] = None
    return row | ({"name": "standby", "state": "standby"} if each.get("state") == "spare" else {})


def _versions(of: Json) -> str:
    versions = of.get("versions")
    if isinstance(versions, Mapping):
        return ", ".join(f"{cell(number)} {cell(state)}" for number, state in cast("Json", versions).items())
    return ", ".join(cell(each) for each in versions or ())


def _fault(fault: Any) -> str:  # a text, or a place with a text
    if isinstance(fault, Mapping):
        raw = cast("Json", fault)
        return f"{cell(raw.get('place'))}: {cell(raw.get('text'))}"
    return cell(fault)


def _option(name: str, value: Any) -> str:  # anything that JSON holds
    if name.endswith("_bytes"):
        return size_text(value) if isinstance(value, int) else ""
    return _value(value)


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
