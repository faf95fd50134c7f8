"""Interprets Triton's model configuration: which fields are supported, which are ignored, which are refused and why.

A pure function from the parsed configuration (config_pbtxt.py) to model options (config/model_options.py), engine,
artifact and version policy. Does not cover: files on disk (scanner.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.specs import ENSEMBLE
from mmsup.supervisor.config import batching_options, model_options, sequence_options, validators
from mmsup.supervisor.config.config_error import (
    ConfigError,
    InvalidValue,
    displayed,
    hidden_error,
    plain_error,
    unknown_name,
)
from mmsup.supervisor.config.yaml_file import join_key, parse_scalar
from mmsup.supervisor.repository.artifact import ENGINES
from mmsup.supervisor.repository.config_pbtxt import ParsedConfig
from mmsup.supervisor.repository.version_policy import VersionPolicy, parse_version_policy
from mmsup.supervisor.repository.warm_up_config import warm_up_problems

BACKENDS: Final = {"onnxruntime": "ort", "pytorch": "pytorch", "python": "custom", ENSEMBLE: ENSEMBLE}
PLATFORMS: Final = {engine.platform: name for name, engine in ENGINES.items()} | {ENSEMBLE: ENSEMBLE}
UNSUPPORTED_BACKENDS: Final = (
    "tensorrt", "tensorrt_plan", "tensorflow", "tensorflow_graphdef", "tensorflow_savedmodel", "openvino", "dali",
    "fil", "vllm", "tensorrtllm", "identity", "repeat", "square",
)  # fmt: skip
"""Backends of Triton, which are reported as unsupported instead of as a typing error."""

OPTION_PREFIX: Final = "mmsup_"

IGNORED_FIELDS: Final = (
    "optimization", "metric_tags", "model_metrics", "cc_model_filenames",
    "runtime",
)  # fmt: skip
"""They affect speed or metrics, never a result: one warning each."""

UNSUPPORTED_FIELDS: Final = {
    "batch_input": "inputs made from the batch are not supported; the model would miss them",
    "batch_output": "outputs scattered over the batch are not supported; the results would differ",
    "model_operations": "libraries of custom operations are not loaded; the model would miss them",
    "model_repository_agents": "agents are not run; the model might not be the intended one",
}
"""Ignoring them would change results."""

UNSUPPORTED_TENSOR_FIELDS: Final = {
    "is_shape_tensor": "shape tensors are not supported",
    "allow_ragged_batch": "ragged batches are not supported; the model would get another batch than it expects",
    "is_non_linear_format_io": "formats other than row-major are not supported",
}
_IGNORED_GROUP_FIELDS: Final = ("rate_limiter", "secondary_devices", "profile", "passive", "host_policy")
_KIND_DEVICE: Final = {"KIND_CPU": "cpu", "KIND_GPU": "cuda", "KIND_AUTO": "auto", "KIND_MODEL": "auto"}

NO_EFFECT: Final = "is read, and has no effect in this version"


@dataclass(frozen=True, slots=True)
class InterpretedConfig:
    """`engine` and `artifact` are empty if the configuration does not name them."""

    options: model_options.ModelOptions
    engine: str = ""
    artifact: str = ""
    is_engine_known: bool = True
    """No engine is named, or one that this version has."""
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()


def interpret(parsed: ParsedConfig, model: str, from_client: bool = False) -> InterpretedConfig:
    """Interpret the configuration of a model. `from_client`: it came with a load request, so it must not set options
    that are reserved for the operator (an interpreter, an environment, trust)."""
    return _Interpreter(parsed, model, from_client).interpret()


class _Interpreter:
    """One pass over the fields of a configuration, which collects errors and warnings."""

    def __init__(self, parsed: ParsedConfig, model: str, from_client: bool) -> None:
        self.source = parsed.source
        self.config = parsed.config
        self.model = model
        self.from_client = from_client
        self.options: model_options.ModelOptions = {}
        self.errors: list[ConfigError] = list(parsed.errors)
        self.warnings: list[ConfigError] = []

    def interpret(self) -> InterpretedConfig:
        if "name" in self.config and self.config["name"] != self.model:
            self.error(
                "name", f"{displayed(self.config['name'])} is not the name of the folder, {displayed(self.model)}"
            )
        engine = self.engine()
        artifact = self.checked("default_model_filename", validators.file_name, "")
        self.tensors("input")
        self.tensors("output")
        if "max_batch_size" in self.config:
            self.checked("max_batch_size", model_options.MODEL_OPTIONS["max_batch_size"].parse, 0, self.options)
        self.groups()
        self.dynamic_batching()
        self.sequence_batching()
        if self.config.get("response_cache", {}).get("enable", False):
            self.options["response_cache"] = True
        if self.config.get("model_transaction_policy", {}).get("decoupled", False):
            self.options["decoupled"] = True
        self.parameters()
        for key, text in warm_up_problems(self.config.get("model_warmup", []), self.options.get("max_batch_size", 0)):
            self.error(key, text)
        self.unsupported()
        if engine == ENSEMBLE:
            self.of_steps()
        policy, problems = parse_version_policy(self.config.get("version_policy", {}))
        for key, text in problems:
            self.plain_error(key, text)
        is_known = bool(engine) or not (self.config.get("backend") or self.config.get("platform"))
        return InterpretedConfig(
            self.options, engine, artifact, is_known, policy, tuple(self.errors), tuple(self.warnings)
        )

    def error(self, key: str, text: str) -> None:
        place = self.source.place(key)
        shown = place.removesuffix(f": {key}") if key.startswith("parameters") else place  # its keys may be any word
        self.errors.append(hidden_error(place, text, shown))

    def plain_error(self, key: str, text: str) -> None:
        """An error that quotes nothing of the file."""
        self.errors.append(plain_error(self.source.place(key), text))

    def warn(self, key: str, text: str = NO_EFFECT) -> None:
        self.warnings.append(ConfigError(self.source.place(key), text))

    def checked(
        self, key: str, check: Callable[[Any], Any], missing: Any, into: model_options.ModelOptions | None = None
    ) -> Any:
        # Any: a field of the configuration, in and out
        if key not in self.config:
            return missing
        try:
            value = check(self.config[key])
        except InvalidValue as error:
            for _, text in error.problems:
                self.error(key, text)
            return missing
        if into is not None:
            into[key] = value
        return value

    def engine(self) -> str:
        found = ""
        for key, table in (("backend", BACKENDS), ("platform", PLATFORMS)):
            name = self.config.get(key, "")
            if not name:
                continue
            if name not in table:
                if name in UNSUPPORTED_BACKENDS:
                    self.plain_error(key, f"{displayed(name)} is not served by this version")
                else:
                    self.error(key, unknown_name(name, table))
            elif found and table[name] != found:
                self.error(key, f"{displayed(name)} contradicts backend {displayed(self.config['backend'])}")
            else:
                found = table[name]
        is_ensemble = "ensemble_scheduling" in self.config
        if is_ensemble and found not in ("", ENSEMBLE):
            self.plain_error(
                "ensemble_scheduling", "is for a model whose platform is ensemble: it has steps, and no file"
            )
        return ENSEMBLE if is_ensemble and not found else found

    def tensors(self, field: str) -> None:
        """`input` and `output`, as the options `inputs` and `outputs`."""
        raw: list[dict[str, Any]] = []  # tensors as in YAML
        for at, tensor in enumerate(self.config.get(field, ())):
            key = f"{field}[{at}]"
            for name, reason in UNSUPPORTED_TENSOR_FIELDS.items():
                if tensor.get(name, False) is not False:
                    self.plain_error(f"{key}.{name}", reason)
            problem = _reshape_problem(tensor)
            if problem:
                self.error(f"{key}.reshape", problem)
            if not tensor.get("dims"):
                self.error(
                    f"{key}.dims",
                    "is missing; a tensor of rank 0 has dims: [1] and reshape { }, or shape: [] in mmsup.yaml",
                )
            elif tensor.get("format", "FORMAT_NONE") != "FORMAT_NONE" and len(tensor["dims"]) != 3:
                self.error(f"{key}.format", f"{tensor['format']} has 3 dimensions, dims has {len(tensor['dims'])}")
            raw.append({name: tensor[name] for name in ("name", "data_type", "dims", "optional") if name in tensor})
        if not raw:
            return
        try:
            self.options[f"{field}s"] = validators.tensors(raw)
        except InvalidValue as error:
            for key, text in error.problems:
                if not (key.endswith(".shape") and text == "is missing"):  # reported above, as a missing `dims`
                    self.error(join_key(field, key), text)

    def of_steps(self) -> None:
        """Warn of the fields that an ensemble, which has no worker, leaves to its steps."""
        for name in ("instance_group", "response_cache", "model_warmup"):
            if self.config.get(name) and self.config[name] != {"enable": False}:
                self.warn(name, "has no effect on an ensemble: say it in the configuration of its steps")

    def groups(self) -> None:
        """`instance_group`, as the options `instances` and `device`."""
        groups: list[dict[str, Any]] = self.config.get("instance_group", [])  # JSON
        devices: list[str] = []
        instances = 0
        for at, group in enumerate(groups):
            key = f"instance_group[{at}]"
            count, gpus, kind = group.get("count", 1), group.get("gpus", []), group.get("kind", "")
            if not 1 <= count <= 256:
                self.error(f"{key}.count", f"{count} is not between 1 and 256")
            if gpus and kind in ("KIND_CPU", "KIND_MODEL"):
                self.error(f"{key}.gpus", f"cannot be combined with {kind}")
            if any(not 0 <= each <= 999 for each in gpus):
                self.error(f"{key}.gpus", "holds a number that no GPU has")
            for name in _IGNORED_GROUP_FIELDS:
                if group.get(name, False) is not False:
                    self.warn(f"{key}.{name}")
            instances += count * max(len(gpus), 1)
            if kind or gpus:
                devices += [f"cuda:{each}" for each in gpus] or [_KIND_DEVICE[kind]]
        if groups:
            self.options["instances"] = instances
        if devices:
            self.options["device"] = devices[0]
        if len(set(devices)) > 1:
            self.warn("instance_group", f"all instances run on {devices[0]}: in this version a model has one device")
        if instances > 256:
            self.error("instance_group", f"{instances} instances are more than 256")

    def dynamic_batching(self) -> None:
        """`dynamic_batching`, as the options `batching`, `priority`, `priority_levels`, `queue_policies`."""
        if "dynamic_batching" not in self.config:
            return
        try:
            self.options |= batching_options.from_triton(self.config["dynamic_batching"])
        except InvalidValue as error:
            for key, text in error.problems:
                self.error(f"dynamic_batching.{key}", text)

    def sequence_batching(self) -> None:
        """`sequence_batching`, as the option `sequences`."""
        if "sequence_batching" not in self.config:
            return
        try:
            self.options["sequences"] = sequence_options.from_triton(self.config["sequence_batching"])
        except InvalidValue as error:
            for key, text in error.problems:
                self.error(join_key("sequence_batching", key) if key else "sequence_batching", text)

    def parameters(self) -> None:
        """`parameters` of the model; those that begin with mmsup_ are model options instead."""
        given: dict[str, str] = {}
        own: dict[str, str] = {}
        for name, value in self.config.get("parameters", {}).items():
            mine = name.startswith(OPTION_PREFIX)
            (own if mine else given)[name.removeprefix(OPTION_PREFIX) if mine else name] = value.get("string_value", "")
        self.add_options("parameters", {"parameters": given} if given else {}, "")
        for name, value in own.items():
            key = f"parameters.{OPTION_PREFIX}{name}"
            if self.from_client:
                self.error(key, "is for the operator's files alone, not for a load request")
                continue
            try:
                self.add_options(key, {name: parse_scalar(value)}, OPTION_PREFIX)
            except InvalidValue as error:
                for _, text in error.problems:
                    self.error(key, text)

    def add_options(self, key: str, raw: dict[str, Any], prefix: str) -> None:  # YAML
        """Add model options that are written at the key `key` of this file."""
        for name, value in raw.items():
            if name not in model_options.MODEL_OPTIONS:
                self.error(key, unknown_name(prefix + name, [prefix + each for each in model_options.MODEL_OPTIONS]))
                continue
            try:
                self.options = model_options.merge(self.options, {name: model_options.MODEL_OPTIONS[name].parse(value)})
            except InvalidValue as error:
                for inner, text in error.problems:
                    self.error(join_key(key, inner), text)

    def unsupported(self) -> None:
        for name in IGNORED_FIELDS:
            if name in self.config:
                self.warn(name)
        for name, reason in UNSUPPORTED_FIELDS.items():
            if name in self.config:
                self.plain_error(name, reason)


def _reshape_problem(tensor: dict[str, Any]) -> str:  # JSON of the configuration
    """What is wrong with `reshape` of a tensor: both shapes have as many elements, also between sizes left open."""
    if "reshape" not in tensor:
        return ""
    dims, shape = tensor.get("dims", []), tensor["reshape"].get("shape", [])
    if any(each < 1 and each != -1 for each in shape):
        return "has a size that is neither -1 nor positive"
    if _fixed_counts(dims) != _fixed_counts(shape):
        return f"{shape} has not as many elements as dims, {dims}: each -1, and what is between, is the same in both"
    return ""


def _fixed_counts(shape: Sequence[int]) -> list[int]:
    """How many elements the fixed sizes have before, between and after those that are open."""
    counts = [1]
    for size in shape:
        if size == -1:
            counts.append(1)
        else:
            counts[-1] *= size
    return counts
