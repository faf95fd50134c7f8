"""Validators for the model option `sequences`, also as `sequence_batching` of Triton's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mmsup.ipc.specs import SequenceBatching, SequenceControl, SequenceState
from mmsup.ipc.tensors.datatypes import from_config_name
from mmsup.supervisor.config import batching_options, validators
from mmsup.supervisor.config.config_error import InvalidValue, displayed

STRATEGIES: Final = ("direct", "oldest")
SLOTS_LIMIT: Final = 65_536
IDLE_LIMIT_S: Final = 7 * 86_400.0
TRITON_IDLE_S: Final = 1.0
"""Of a configuration that gives none."""
_KINDS: Final = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_CORRID": "id",
}
_TRUTHS: Final = {"int32_false_true": "INT32", "fp32_false_true": "FP32", "bool_false_true": "BOOL"}
_ID_TYPES: Final = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")

Json = dict[str, Any]  # JSON: each member has its own type
Problems = list[tuple[str, str]]


def parse_sequences(raw: object) -> Json:
    """`sequences: {strategy, slots, idle, delay, preferred}`; each is optional, and `true` is an empty mapping."""
    return batching_options.parse_mapping(
        {} if raw is True else raw, "mapping of strategy, slots, idle, delay and preferred, or true", _SEQUENCES
    )


def from_triton(config: Mapping[str, Any]) -> Json:
    """The option that a `sequence_batching` sets; InvalidValue with the names of invalid fields."""
    problems: Problems = []
    found: Json = {"idle": _idle_s(config, problems)}
    if config.get("iterative_sequence"):
        problems.append(("iterative_sequence", "is not supported: a request is one run of the model"))
    oldest, direct = config.get("oldest"), config.get("direct", {})
    delay_us = int((direct if oldest is None else oldest).get("max_queue_delay_microseconds", 0))
    name = "direct" if oldest is None else "oldest"
    if delay_us > batching_options.MAX_DELAY_S * 1e6:
        text = f"{delay_us} is more than {batching_options.MAX_DELAY_S:.0f} s"
        problems.append((f"{name}.max_queue_delay_microseconds", text))
    found |= {"strategy": name, "delay": delay_us / 1e6}
    if oldest is None:
        found["utilization"] = _utilization(direct, problems)
    else:
        found |= _oldest(oldest, problems)
    found["controls"] = _controls(config, problems)
    found["states"] = _states(config, problems)
    names = [each["input"] for each in (*found["controls"], *found["states"])]
    problems += [("", f"two of its inputs have the name {displayed(each)}") for each in names if names.count(each) > 1]
    if problems:
        raise InvalidValue(*problems)
    return {key: value for key, value in found.items() if value not in ((), [], 0, 0.0)}


def _idle_s(config: Mapping[str, Any], problems: Problems) -> float:
    idle_s = int(config.get("max_sequence_idle_microseconds", 0)) / 1e6
    if idle_s > IDLE_LIMIT_S:
        problems.append(("max_sequence_idle_microseconds", f"{idle_s:g} s are more than {IDLE_LIMIT_S:.0f} s"))
    return idle_s or TRITON_IDLE_S


def _utilization(direct: Mapping[str, Any], problems: Problems) -> float:
    part = float(direct.get("minimum_slot_utilization", 0.0))
    if not 0 <= part <= 1:
        problems.append(("direct.minimum_slot_utilization", f"{part:g} is not between 0 and 1"))
    return part


def _oldest(oldest: Mapping[str, Any], problems: Problems) -> Json:
    slots = int(oldest.get("max_candidate_sequences", 0))
    if not 0 <= slots <= SLOTS_LIMIT:
        problems.append(("oldest.max_candidate_sequences", f"{slots} is not between 0 and {SLOTS_LIMIT}"))
    sizes = sorted({int(each) for each in oldest.get("preferred_batch_size", ())})
    if sizes and sizes[0] < 1:
        problems.append(("oldest.preferred_batch_size", "has a size that is not positive"))
    return {"slots": slots, "preferred": sizes}


def _controls(config: Mapping[str, Any], problems: Problems) -> list[Json]:
    found: list[Json] = []
    for at, given in enumerate(config.get("control_input", ())):
        key, controls = f"control_input[{at}]", given.get("control", [])
        if not given.get("name"):
            problems.append((key, "has no name"))
        if len(controls) != 1:
            problems.append((f"{key}.control", "must be exactly one: an input tells one thing"))
            continue
        control = controls[0]
        kind = _KINDS[control.get("kind", "CONTROL_SEQUENCE_START")]
        if any(each["kind"] == kind for each in found):
            problems.append((f"{key}.control", "tells what another input tells already"))
        made = _id_control(control) if kind == "id" else _truth_control(control)
        if isinstance(made, str):
            problems.append((f"{key}.control", made))
        else:
            found.append({"input": given.get("name", ""), "kind": kind, **made})
    return found


def _id_control(control: Mapping[str, Any]) -> Json | str:
    datatype = from_config_name(control.get("data_type", ""))
    if datatype not in _ID_TYPES:
        return "needs a data_type: TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 or TYPE_STRING"
    return {"datatype": datatype, "no": 0.0, "yes": 0.0}


def _truth_control(control: Mapping[str, Any]) -> Json | str:
    given = [name for name in _TRUTHS if control.get(name)]
    if len(given) != 1 or len(control[given[0]]) != 2:
        return f"needs two values, for false and for true, as one of {', '.join(_TRUTHS)}"
    no, yes = (float(each) for each in control[given[0]])
    return {"datatype": _TRUTHS[given[0]], "no": no, "yes": yes}


def _states(config: Mapping[str, Any], problems: Problems) -> list[Json]:
    found: list[Json] = []
    for at, given in enumerate(config.get("state", ())):
        key, datatype = f"state[{at}]", from_config_name(given.get("data_type", ""))
        dims = [int(each) for each in given.get("dims", ())]
        if not given.get("input_name") or not given.get("output_name"):
            problems.append((key, "needs input_name and output_name"))
        if not datatype:
            problems.append((f"{key}.data_type", "is missing"))
        if any(each < 1 and each != -1 for each in dims) or not dims:
            problems.append((f"{key}.dims", "must be sizes that are positive, or -1"))
        made = {"input": given.get("input_name", ""), "output": given.get("output_name", "")}
        made |= {"datatype": datatype, "shape": dims}
        made |= _initial(given.get("initial_state", ()), made, f"{key}.initial_state", problems)
        found.append(made)
    return found


def _initial(given: Any, state: Json, key: str, problems: Problems) -> Json:  # a list of InitialState as JSON
    if not given:
        return {}
    first = given[0]
    shape = [int(each) for each in first.get("dims", ())]
    if len(given) > 1:
        problems.append((key, "is given more than once"))
    if from_config_name(first.get("data_type", "")) != state["datatype"]:
        problems.append((f"{key}.data_type", "is not that of its state"))
    fits = len(shape) == len(state["shape"]) and all(
        want in (-1, size) and size > 0 for want, size in zip(state["shape"], shape, strict=True)
    )
    if not fits:
        problems.append((f"{key}.dims", f"{shape} does not fit those of its state, {state['shape']}"))
    if "data_file" not in first:
        return {"initial_shape": shape}
    try:
        return {"initial_shape": shape, "initial_file": validators.file_name(first["data_file"])}
    except InvalidValue as error:
        problems.extend((f"{key}.data_file", text) for _, text in error.problems)
        return {}


def sequences_spec(keys: Mapping[str, Any]) -> SequenceBatching:
    return SequenceBatching(
        keys.get("strategy", "direct"),
        keys.get("slots", 0),
        keys.get("idle", TRITON_IDLE_S),
        keys.get("delay", 0.0),
        keys.get("utilization", 0.0),
        tuple(keys.get("preferred", ())),
        tuple(SequenceControl(**each) for each in keys.get("controls", ())),
        tuple(_state_spec(each) for each in keys.get("states", ())),
    )


def _state_spec(state: Mapping[str, Any]) -> SequenceState:  # JSON, checked
    names = state["input"], state["output"], state["datatype"]
    return SequenceState(
        *names, tuple(state["shape"]), tuple(state.get("initial_shape", ())), state.get("initial_file", "")
    )


def _idle(raw: object) -> float:
    seconds = validators.duration(raw)
    if seconds > IDLE_LIMIT_S:
        raise InvalidValue(f"{displayed(raw)} is more than {IDLE_LIMIT_S:.0f} s")
    return seconds


_SEQUENCES: Final[dict[str, validators.Parser[Any]]] = {  # each member has its own type
    "strategy": validators.one_of(STRATEGIES),
    "slots": validators.integer(1, SLOTS_LIMIT),
    "idle": _idle,
    "delay": batching_options.parse_delay,
    "preferred": batching_options.parse_sizes,
}
