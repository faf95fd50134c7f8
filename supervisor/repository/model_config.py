"""What a ModelConfig means here: which of its fields we honour, which have no effect, which we refuse and why.

Covers: Triton's model configuration as keys of a model (keys.py), its engine, artefact and version policy.
Pure: a dict of what was said in, a Declared out. Does not cover: reading the text (pbtxt.py); files on disk
(repository.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmsup.supervisor.config import batching_options, validators
from mmsup.supervisor.config import model_options as keys
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed, unknown_name
from mmsup.supervisor.config.yaml_file import join_key, parse_scalar
from mmsup.supervisor.repository.artifact import ENGINES
from mmsup.supervisor.repository.config_pbtxt import ParsedConfig

BACKENDS: Final = {"onnxruntime": "ort", "pytorch": "pytorch", "python": "custom"}
PLATFORMS: Final = {engine.platform: name for name, engine in ENGINES.items()}
UNSUPPORTED_BACKENDS: Final = (
    "tensorrt",
    "tensorrt_plan",
    "tensorflow",
    "tensorflow_graphdef",
    "tensorflow_savedmodel",
    "openvino",
    "dali",
    "fil",
    "vllm",
    "tensorrtllm",
    "identity",
    "repeat",
    "square",
    "ensemble",
)
"""Names that Triton's users know; said so instead of taken for a slip of the pen."""

OPTION_PREFIX: Final = "mmsup_"

IGNORED_FIELDS: Final = (
    "optimization",
    "model_warmup",
    "response_cache",
    "metric_tags",
    "model_metrics",
    "cc_model_filenames",
    "runtime",
)
"""They change speed or what is counted, never an answer: one warning each."""

UNSUPPORTED_FIELDS: Final = {
    "sequence_batching": "sequences of requests are not built; without their state the answers would differ",
    "ensemble_scheduling": "ensembles are not built",
    "batch_input": "inputs made from the batch are not built; the model would miss them",
    "batch_output": "outputs scattered over the batch are not built; the answers would differ",
    "model_operations": "libraries of custom operations are not loaded; the model would miss them",
    "model_repository_agents": "agents are not run; the model might not be the one that was meant",
}
"""They change answers if passed over."""

UNSUPPORTED_TENSOR_FIELDS: Final = {
    "reshape": "is not built; declare the shape that the model itself has",
    "is_shape_tensor": "shape tensors are not built",
    "allow_ragged_batch": "ragged batches are not built; the model would get another batch than it expects",
    "is_non_linear_format_io": "formats other than row by row are not built",
}
_IGNORED_GROUP_FIELDS: Final = ("rate_limiter", "secondary_devices", "profile", "passive", "host_policy")
_KIND_DEVICE: Final = {"KIND_CPU": "cpu", "KIND_GPU": "cuda", "KIND_AUTO": "auto", "KIND_MODEL": "auto"}

NO_EFFECT: Final = "is read, and has no effect in this version"


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: the latest so many, all, or these."""

    latest: int = 1
    all_versions: bool = False
    specific: tuple[int, ...] = ()

    def select(self, available: Sequence[str]) -> tuple[str, ...]:
        """The versions to serve out of those there are, in ascending order."""
        ordered = sorted(available, key=int)
        if self.specific:
            return tuple(each for each in ordered if int(each) in self.specific)
        return tuple(ordered if self.all_versions else ordered[-self.latest :])


@dataclass(frozen=True, slots=True)
class InterpretedConfig:
    """What a model's configuration says in our terms. Empty `engine`, `artefact`: not said."""

    options: keys.ModelOptions
    engine: str = ""
    artifact: str = ""
    version_policy: VersionPolicy = VersionPolicy()
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()


def interpret(said: ParsedConfig, model: str, from_client: bool = False) -> InterpretedConfig:
    """The meaning of a configuration of the model of that name. `from_client`: it came with a load request, so it may
    not say what only the operator may (an interpreter, an environment, trust)."""
    return _Interpreter(said, model, from_client).interpret()


class _Interpreter:
    """One pass over the fields of a configuration; faults and warnings gather on the way."""

    def __init__(self, said: ParsedConfig, model: str, from_client: bool) -> None:
        self.said = said
        self.config = said.config
        self.model = model
        self.from_client = from_client
        self.options: keys.ModelOptions = {}
        self.errors: list[ConfigError] = list(said.errors)
        self.warnings: list[ConfigError] = []

    def interpret(self) -> InterpretedConfig:
        """Every field, in the order in which a reader would look for the faults."""
        if "name" in self.config and self.config["name"] != self.model:
            self.error(
                "name", f"{displayed(self.config['name'])} is not the name of the folder, {displayed(self.model)}"
            )
        engine = self.engine()
        artefact = self.checked("default_model_filename", _file_name, "")
        self.tensors("input")
        self.tensors("output")
        if "max_batch_size" in self.config:
            self.checked("max_batch_size", keys.MODEL_OPTIONS["max_batch_size"].parse, 0, self.options)
        self.groups()
        self.dynamic_batching()
        self.parameters()
        self.unsupported()
        return InterpretedConfig(
            self.options, engine, artefact, self.version_policy(), tuple(self.errors), tuple(self.warnings)
        )

    def error(self, key: str, text: str) -> None:
        """Something is wrong at this key."""
        self.errors.append(ConfigError(self.said.source.place(key), text))

    def warn(self, key: str, text: str = NO_EFFECT) -> None:
        """Something at this key is not as its writer may think."""
        self.warnings.append(ConfigError(self.said.source.place(key), text))

    def checked(
        self, key: str, check: Callable[[Any], Any], missing: Any, into: keys.ModelOptions | None = None
    ) -> Any:
        # Any: a field of the configuration, in and out
        if key not in self.config:
            return missing
        try:
            value = check(self.config[key])
        except InvalidValue as wrong:
            for _, text in wrong.problems:
                self.error(key, text)
            return missing
        if into is not None:
            into[key] = value
        return value

    def engine(self) -> str:
        """The engine that `backend` or `platform` names."""
        found = ""
        for key, table in (("backend", BACKENDS), ("platform", PLATFORMS)):
            word = self.config.get(key, "")
            if not word:
                continue
            if word not in table:
                known = f"{displayed(word)} is not served by this version"
                self.error(key, known if word in UNSUPPORTED_BACKENDS else unknown_name(word, table))
            elif found and table[word] != found:
                self.error(key, f"{displayed(word)} contradicts backend {displayed(self.config['backend'])}")
            else:
                found = table[word]
        return found

    def tensors(self, field: str) -> None:
        """`input` and `output`, as the keys `inputs` and `outputs`."""
        raw: list[dict[str, Any]] = []  # tensors as YAML would have them
        for at, tensor in enumerate(self.config.get(field, ())):
            key = f"{field}[{at}]"
            for word, reason in UNSUPPORTED_TENSOR_FIELDS.items():
                if tensor.get(word, False) is not False:
                    self.error(f"{key}.{word}", reason)
            if "label_filename" in tensor:
                self.warn(f"{key}.label_filename")
            if not tensor.get("dims"):
                self.error(f"{key}.dims", "is missing; a tensor of rank 0 is declared in mmsup.yaml, by shape: []")
            elif tensor.get("format", "FORMAT_NONE") != "FORMAT_NONE" and len(tensor["dims"]) != 3:
                self.error(f"{key}.format", f"{tensor['format']} has 3 dimensions, dims has {len(tensor['dims'])}")
            raw.append({word: tensor[word] for word in ("name", "data_type", "dims", "optional") if word in tensor})
        if not raw:
            return
        try:
            self.options[f"{field}s"] = validators.tensors(raw)
        except InvalidValue as wrong:
            for key, text in wrong.problems:
                if not (key.endswith(".shape") and text == "is missing"):  # said above, in this file's words
                    self.error(join_key(field, key), text)

    def groups(self) -> None:
        """`instance_group`, as the keys `instances` and `device`."""
        groups: list[dict[str, Any]] = self.config.get("instance_group", [])  # JSON
        devices: list[str] = []
        instances = 0
        for at, group in enumerate(groups):
            key = f"instance_group[{at}]"
            count, gpus, kind = group.get("count", 1), group.get("gpus", []), group.get("kind", "")
            if not 1 <= count <= 256:
                self.error(f"{key}.count", f"{count} is not between 1 and 256")
            if gpus and kind in ("KIND_CPU", "KIND_MODEL"):
                self.error(f"{key}.gpus", f"cannot be said with {kind}")
            if any(not 0 <= each <= 999 for each in gpus):
                self.error(f"{key}.gpus", "holds a number that no GPU has")
            for word in _IGNORED_GROUP_FIELDS:
                if group.get(word, False) is not False:
                    self.warn(f"{key}.{word}")
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
        """`dynamic_batching`, as the keys `batching`, `priority`, `priority_levels`, `queue_policies`."""
        if "dynamic_batching" not in self.config:
            return
        try:
            self.options |= batching_options.from_triton(self.config["dynamic_batching"])
        except InvalidValue as wrong:
            for key, text in wrong.problems:
                self.error(f"dynamic_batching.{key}", text)

    def parameters(self) -> None:
        """`parameters`: to the model, but those that begin with mmsup_ are keys of ours."""
        given: dict[str, str] = {}
        own: dict[str, str] = {}
        for name, value in self.config.get("parameters", {}).items():
            mine = name.startswith(OPTION_PREFIX)
            (own if mine else given)[name.removeprefix(OPTION_PREFIX) if mine else name] = value.get("string_value", "")
        self.add_options("parameters", {"parameters": given} if given else {}, "")
        for name, text in own.items():
            key = f"parameters.{OPTION_PREFIX}{name}"
            if self.from_client:
                self.error(key, "is for the operator's files alone, not for a load request")
                continue
            try:
                self.add_options(key, {name: parse_scalar(text)}, OPTION_PREFIX)
            except InvalidValue as wrong:
                for _, words in wrong.problems:
                    self.error(key, words)

    def add_options(self, key: str, raw: dict[str, Any], prefix: str) -> None:  # YAML
        """Keys of a model that stand under the key `key` of this file."""
        for word, value in raw.items():
            if word not in keys.MODEL_OPTIONS:
                self.error(key, unknown_name(prefix + word, [prefix + each for each in keys.MODEL_OPTIONS]))
                continue
            try:
                self.options = keys.merge(self.options, {word: keys.MODEL_OPTIONS[word].parse(value)})
            except InvalidValue as wrong:
                for inner, text in wrong.problems:
                    self.error(join_key(key, inner), text)

    def version_policy(self) -> VersionPolicy:
        """`version_policy`: latest 1 where nothing is said."""
        said = self.config.get("version_policy", {})
        if "all" in said:
            return VersionPolicy(all_versions=True)
        if "specific" in said:
            versions = tuple(said["specific"].get("versions", ()))
            if not versions or any(each < 1 for each in versions):
                self.error("version_policy.specific", "lists positive versions, at least one")
            return VersionPolicy(specific=versions)
        latest = said.get("latest", {}).get("num_versions", 1)
        if latest < 1:
            self.error("version_policy.latest", "num_versions is at least 1")
        return VersionPolicy(latest=max(latest, 1))

    def unsupported(self) -> None:
        """What this version does not do: harmless or refused."""
        for word in _present_fields(self.config, IGNORED_FIELDS):
            self.warn(word)
        for word in _present_fields(self.config, UNSUPPORTED_FIELDS):
            self.error(word, UNSUPPORTED_FIELDS[word])
        if self.config.get("model_transaction_policy", {}).get("decoupled", False):
            self.error("model_transaction_policy.decoupled", "models that stream are not built")


def _present_fields(config: dict[str, Any], words: Iterable[str]) -> list[str]:  # ModelConfig as JSON
    return [word for word in words if word in config]


def _file_name(raw: object) -> str:
    """The name of a file: one component of a path."""
    name = validators.text(raw)
    if "/" in name or name in (".", "..") or len(name.encode()) > 255:
        raise InvalidValue(f"{displayed(name)} is not the name of a file in the version's folder")
    return name
