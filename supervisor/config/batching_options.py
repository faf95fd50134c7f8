"""Validators for the model options `batching`, `priority_levels` and `queue_policies`, also as `dynamic_batching`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mmsup.ipc.specs import PRIORITY_LEVELS, Batching, QueuePolicy
from mmsup.supervisor.config import validators
from mmsup.supervisor.config.config_error import InvalidValue, displayed, unknown_name

MAX_ROWS: Final = (1 << 31) - 1
MAX_DELAY_S: Final = 10.0
ACTIONS: Final = ("reject", "delay")

Json = dict[str, Any]  # JSON: each member has its own type


def parse_batching(raw: object) -> Json:
    """`batching: {max_size, delay, preferred, objective}`; each is optional."""
    return parse_mapping(raw, "mapping of max_size, delay, preferred and objective", _BATCHING)


def parse_queue_policies(raw: object) -> list[Json]:
    """`queue_policies: [{level, max_queue, timeout, action}]`; level 0, or none, is for all levels without a policy."""
    given = validators.sequence(raw, "list of policies, each with level, max_queue, timeout, action")
    if not 1 <= len(given) <= PRIORITY_LEVELS:
        raise InvalidValue(f"{len(given)} policies; there may be 1 to {PRIORITY_LEVELS}")
    problems: list[str | tuple[str, str]] = []
    found: list[Json] = []
    for at, each in enumerate(given):
        try:
            found.append({"level": 0, **parse_mapping(each, "policy", _POLICY)})
        except InvalidValue as error:
            problems += [(f"[{at}].{key}" if key else f"[{at}]", text) for key, text in error.problems]
    levels = [each["level"] for each in found]
    problems += [f"two policies are for level {each}" for each in sorted(set(levels)) if levels.count(each) > 1]
    if problems:
        raise InvalidValue(*problems)
    return found


def from_triton(config: Mapping[str, Any]) -> Json:
    """The model options that a `dynamic_batching` of Triton sets; InvalidValue with the names of invalid fields."""
    problems: list[tuple[str, str]] = []
    levels, own = int(config.get("priority_levels", 0)), int(config.get("default_priority_level", 0))
    if levels > PRIORITY_LEVELS:
        problems.append(("priority_levels", f"{levels} are more than {PRIORITY_LEVELS}"))
    if levels and not 1 <= own <= levels:
        problems.append(("default_priority_level", f"{own} is not between 1 and priority_levels, {levels}"))
    if own and not levels:
        problems.append(("default_priority_level", "needs priority_levels"))
    if config.get("preserve_ordering", False) and levels > 1:
        problems.append(("preserve_ordering", "and priorities exclude each other: they are there to change the order"))
    keys: Json = {"batching": _batching_from_triton(config, problems)}
    if levels:
        keys |= {"priority_levels": levels, "priority": own}
    found = _policies_from_triton(config, levels, problems)
    if found:
        keys["queue_policies"] = found
    if problems:
        raise InvalidValue(*problems)
    return keys


def _batching_from_triton(config: Mapping[str, Any], problems: list[tuple[str, str]]) -> Json:
    found: Json = {}
    delay_us = int(config.get("max_queue_delay_microseconds", 0))
    if delay_us > MAX_DELAY_S * 1e6:
        problems.append(("max_queue_delay_microseconds", f"{delay_us} is more than {MAX_DELAY_S:.0f} s"))
    elif delay_us:
        found["delay"] = delay_us / 1e6
    if config.get("preferred_batch_size"):
        try:
            found["preferred"] = parse_sizes(config["preferred_batch_size"])
        except InvalidValue as error:
            problems += [("preferred_batch_size", text) for _, text in error.problems]
    return found


def _policies_from_triton(config: Mapping[str, Any], levels: int, problems: list[tuple[str, str]]) -> list[Json]:
    found = [_policy_from_triton(config["default_queue_policy"], 0)] if "default_queue_policy" in config else []
    for name, each in config.get("priority_queue_policy", {}).items():
        if not 1 <= int(name) <= levels:
            problems.append(("priority_queue_policy", f"{name} is not between 1 and priority_levels, {levels}"))
        found.append(_policy_from_triton(each, int(name)))
    return found


def _policy_from_triton(config: Mapping[str, Any], level: int) -> Json:
    """`allow_timeout_override` is ignored: a request's own timeout always takes effect."""
    policy: Json = {"level": level}
    if config.get("max_queue_size"):
        policy["max_queue"] = min(int(config["max_queue_size"]), 1_000_000)
    if config.get("default_timeout_microseconds"):
        policy["timeout"] = int(config["default_timeout_microseconds"]) / 1e6
    if config.get("timeout_action", "REJECT") == "DELAY":
        policy["action"] = "delay"
    return policy


def batching_spec(keys: Mapping[str, Any]) -> Batching:
    return Batching(
        keys.get("max_size", 0), keys.get("delay", 0.0), tuple(keys.get("preferred", ())), keys.get("objective", 0.0)
    )


def policy_specs(keys: list[Json]) -> tuple[QueuePolicy, ...]:
    return tuple(
        QueuePolicy(each["level"], each.get("max_queue", 0), each.get("timeout", 0.0), each.get("action") == "delay")
        for each in keys
    )


def has_no_effect(keys: Mapping[str, Any]) -> bool:
    """Whether the options have `batching`, but a `max_batch_size` of 0."""
    return bool(keys.get("batching")) and not keys.get("max_batch_size")


def oversized_batches(keys: Mapping[str, Any]) -> list[int]:
    """Sizes in `batching` above `max_batch_size`."""
    options, most = keys.get("batching", {}), keys.get("max_batch_size", 0)
    return [each for each in (options.get("max_size", 0), *options.get("preferred", ())) if most and each > most]


def parse_sizes(raw: object) -> list[int]:
    size = validators.integer(1, MAX_ROWS)
    found = sorted({size(each) for each in validators.sequence(raw, "list of sizes")})
    if not found:
        raise InvalidValue("an empty list of sizes")
    return found


def parse_delay(raw: object) -> float:
    seconds = validators.duration(raw)
    if seconds > MAX_DELAY_S:
        raise InvalidValue(f"{displayed(raw)} is more than {MAX_DELAY_S:.0f} s; requests must not wait so long")
    return seconds


_BATCHING: Final[dict[str, validators.Parser[Any]]] = {  # each member has its own type
    "max_size": validators.integer(1, MAX_ROWS),
    "delay": parse_delay,
    "preferred": parse_sizes,
    "objective": validators.duration,
}
_POLICY: Final[dict[str, validators.Parser[Any]]] = {  # as above
    "level": validators.integer(0, PRIORITY_LEVELS),
    "max_queue": validators.integer(1, 1_000_000),
    "timeout": validators.duration,
    "action": validators.one_of(ACTIONS),
}


def parse_mapping(
    raw: object, what: str, known: Mapping[str, validators.Parser[Any]]
) -> Json:  # each member has its own type
    problems: list[tuple[str, str]] = []
    found: Json = {}
    for name, value in validators.mapping(raw, what).items():
        if name not in known:
            problems.append((name, unknown_name(name, known)))
            continue
        try:
            found[name] = known[name](value)
        except InvalidValue as error:
            problems += [(f"{name}{key}", text) for key, text in error.problems]
    if problems:
        raise InvalidValue(*problems)
    return found
