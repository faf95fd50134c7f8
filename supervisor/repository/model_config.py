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
from mmsup.supervisor.config.config_error import Fault, Wrong, shown, unknown
from mmsup.supervisor.config.yaml_file import below, scalar
from mmsup.supervisor.repository.artifact import ENGINES
from mmsup.supervisor.repository.config_pbtxt import Said

BACKENDS: Final = {"onnxruntime": "ort", "pytorch": "pytorch", "python": "custom"}
PLATFORMS: Final = {engine.platform: name for name, engine in ENGINES.items()}
FOREIGN: Final = (
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

OWN_PREFIX: Final = "mmsup_"

WITHOUT_EFFECT: Final = (
    "optimization",
    "model_warmup",
    "response_cache",
    "metric_tags",
    "model_metrics",
    "cc_model_filenames",
    "runtime",
)
"""They change speed or what is counted, never an answer: one warning each."""

REFUSED: Final = {
    "sequence_batching": "sequences of requests are not built; without their state the answers would differ",
    "ensemble_scheduling": "ensembles are not built",
    "batch_input": "inputs made from the batch are not built; the model would miss them",
    "batch_output": "outputs scattered over the batch are not built; the answers would differ",
    "model_operations": "libraries of custom operations are not loaded; the model would miss them",
    "model_repository_agents": "agents are not run; the model might not be the one that was meant",
}
"""They change answers if passed over."""

REFUSED_TENSOR: Final = {
    "reshape": "is not built; declare the shape that the model itself has",
    "is_shape_tensor": "shape tensors are not built",
    "allow_ragged_batch": "ragged batches are not built; the model would get another batch than it expects",
    "is_non_linear_format_io": "formats other than row by row are not built",
}
_GROUP_WITHOUT_EFFECT: Final = ("rate_limiter", "secondary_devices", "profile", "passive", "host_policy")
_KIND_DEVICE: Final = {"KIND_CPU": "cpu", "KIND_GPU": "cuda", "KIND_AUTO": "auto", "KIND_MODEL": "auto"}

NO_EFFECT: Final = "is read, and has no effect in this version"


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: the latest so many, all, or these."""

    latest: int = 1
    every: bool = False
    specific: tuple[int, ...] = ()

    def chosen(self, available: Sequence[str]) -> tuple[str, ...]:
        """The versions to serve out of those there are, in ascending order."""
        ordered = sorted(available, key=int)
        if self.specific:
            return tuple(each for each in ordered if int(each) in self.specific)
        return tuple(ordered if self.every else ordered[-self.latest :])


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model's configuration says in our terms. Empty `engine`, `artefact`: not said."""

    keys: keys.Keys
    engine: str = ""
    artefact: str = ""
    policy: VersionPolicy = VersionPolicy()
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


def declared(said: Said, model: str, from_client: bool = False) -> Declared:
    """The meaning of a configuration of the model of that name. `from_client`: it came with a load request, so it may
    not say what only the operator may (an interpreter, an environment, trust)."""
    return _Meaning(said, model, from_client).all()


class _Meaning:
    """One pass over the fields of a configuration; faults and warnings gather on the way."""

    def __init__(self, said: Said, model: str, from_client: bool) -> None:
        self.said = said
        self.config = said.config
        self.model = model
        self.from_client = from_client
        self.keys: keys.Keys = {}
        self.faults: list[Fault] = list(said.faults)
        self.warnings: list[Fault] = []

    def all(self) -> Declared:
        """Every field, in the order in which a reader would look for the faults."""
        if "name" in self.config and self.config["name"] != self.model:
            self.fault("name", f"{shown(self.config['name'])} is not the name of the folder, {shown(self.model)}")
        engine = self.engine()
        artefact = self.checked("default_model_filename", _component, "")
        self.tensors("input")
        self.tensors("output")
        if "max_batch_size" in self.config:
            self.checked("max_batch_size", keys.KEYS["max_batch_size"].valid, 0, self.keys)
        self.groups()
        self.batches()
        self.parameters()
        self.unhonoured()
        return Declared(self.keys, engine, artefact, self.policy(), tuple(self.faults), tuple(self.warnings))

    def fault(self, key: str, text: str) -> None:
        """Something is wrong at this key."""
        self.faults.append(Fault(self.said.source.place(key), text))

    def warn(self, key: str, text: str = NO_EFFECT) -> None:
        """Something at this key is not as its writer may think."""
        self.warnings.append(Fault(self.said.source.place(key), text))

    def checked(self, key: str, check: Callable[[Any], Any], missing: Any, into: keys.Keys | None = None) -> Any:
        # Any: a field of the configuration, in and out
        if key not in self.config:
            return missing
        try:
            value = check(self.config[key])
        except Wrong as wrong:
            for _, text in wrong.wrongs:
                self.fault(key, text)
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
                known = f"{shown(word)} is not served by this version"
                self.fault(key, known if word in FOREIGN else unknown(word, table))
            elif found and table[word] != found:
                self.fault(key, f"{shown(word)} contradicts backend {shown(self.config['backend'])}")
            else:
                found = table[word]
        return found

    def tensors(self, field: str) -> None:
        """`input` and `output`, as the keys `inputs` and `outputs`."""
        raw: list[dict[str, Any]] = []  # tensors as YAML would have them
        for at, tensor in enumerate(self.config.get(field, ())):
            key = f"{field}[{at}]"
            for word, reason in REFUSED_TENSOR.items():
                if tensor.get(word, False) is not False:
                    self.fault(f"{key}.{word}", reason)
            if "label_filename" in tensor:
                self.warn(f"{key}.label_filename")
            if not tensor.get("dims"):
                self.fault(f"{key}.dims", "is missing; a tensor of rank 0 is declared in mmsup.yaml, by shape: []")
            elif tensor.get("format", "FORMAT_NONE") != "FORMAT_NONE" and len(tensor["dims"]) != 3:
                self.fault(f"{key}.format", f"{tensor['format']} has 3 dimensions, dims has {len(tensor['dims'])}")
            raw.append({word: tensor[word] for word in ("name", "data_type", "dims", "optional") if word in tensor})
        if not raw:
            return
        try:
            self.keys[f"{field}s"] = validators.tensors(raw)
        except Wrong as wrong:
            for key, text in wrong.wrongs:
                if not (key.endswith(".shape") and text == "is missing"):  # said above, in this file's words
                    self.fault(below(field, key), text)

    def groups(self) -> None:
        """`instance_group`, as the keys `instances` and `device`."""
        groups: list[dict[str, Any]] = self.config.get("instance_group", [])  # JSON
        devices: list[str] = []
        instances = 0
        for at, group in enumerate(groups):
            key = f"instance_group[{at}]"
            count, gpus, kind = group.get("count", 1), group.get("gpus", []), group.get("kind", "")
            if not 1 <= count <= 256:
                self.fault(f"{key}.count", f"{count} is not between 1 and 256")
            if gpus and kind in ("KIND_CPU", "KIND_MODEL"):
                self.fault(f"{key}.gpus", f"cannot be said with {kind}")
            if any(not 0 <= each <= 999 for each in gpus):
                self.fault(f"{key}.gpus", "holds a number that no GPU has")
            for word in _GROUP_WITHOUT_EFFECT:
                if group.get(word, False) is not False:
                    self.warn(f"{key}.{word}")
            instances += count * max(len(gpus), 1)
            if kind or gpus:
                devices += [f"cuda:{each}" for each in gpus] or [_KIND_DEVICE[kind]]
        if groups:
            self.keys["instances"] = instances
        if devices:
            self.keys["device"] = devices[0]
        if len(set(devices)) > 1:
            self.warn("instance_group", f"all instances run on {devices[0]}: in this version a model has one device")
        if instances > 256:
            self.fault("instance_group", f"{instances} instances are more than 256")

    def batches(self) -> None:
        """`dynamic_batching`, as the keys `batching`, `priority`, `priority_levels`, `queue_policies`."""
        if "dynamic_batching" not in self.config:
            return
        try:
            self.keys |= batching_options.of_triton(self.config["dynamic_batching"])
        except Wrong as wrong:
            for key, text in wrong.wrongs:
                self.fault(f"dynamic_batching.{key}", text)

    def parameters(self) -> None:
        """`parameters`: to the model, but those that begin with mmsup_ are keys of ours."""
        given: dict[str, str] = {}
        own: dict[str, str] = {}
        for name, value in self.config.get("parameters", {}).items():
            mine = name.startswith(OWN_PREFIX)
            (own if mine else given)[name.removeprefix(OWN_PREFIX) if mine else name] = value.get("string_value", "")
        self.take("parameters", {"parameters": given} if given else {}, "")
        for name, text in own.items():
            key = f"parameters.{OWN_PREFIX}{name}"
            if self.from_client:
                self.fault(key, "is for the operator's files alone, not for a load request")
                continue
            try:
                self.take(key, {name: scalar(text)}, OWN_PREFIX)
            except Wrong as wrong:
                for _, words in wrong.wrongs:
                    self.fault(key, words)

    def take(self, key: str, raw: dict[str, Any], prefix: str) -> None:  # YAML
        """Keys of a model that stand under the key `key` of this file."""
        for word, value in raw.items():
            if word not in keys.KEYS:
                self.fault(key, unknown(prefix + word, [prefix + each for each in keys.KEYS]))
                continue
            try:
                self.keys = keys.merged(self.keys, {word: keys.KEYS[word].valid(value)})
            except Wrong as wrong:
                for inner, text in wrong.wrongs:
                    self.fault(below(key, inner), text)

    def policy(self) -> VersionPolicy:
        """`version_policy`: latest 1 where nothing is said."""
        said = self.config.get("version_policy", {})
        if "all" in said:
            return VersionPolicy(every=True)
        if "specific" in said:
            versions = tuple(said["specific"].get("versions", ()))
            if not versions or any(each < 1 for each in versions):
                self.fault("version_policy.specific", "lists positive versions, at least one")
            return VersionPolicy(specific=versions)
        latest = said.get("latest", {}).get("num_versions", 1)
        if latest < 1:
            self.fault("version_policy.latest", "num_versions is at least 1")
        return VersionPolicy(latest=max(latest, 1))

    def unhonoured(self) -> None:
        """What this version does not do: harmless or refused."""
        for word in _there(self.config, WITHOUT_EFFECT):
            self.warn(word)
        for word in _there(self.config, REFUSED):
            self.fault(word, REFUSED[word])
        if self.config.get("model_transaction_policy", {}).get("decoupled", False):
            self.fault("model_transaction_policy.decoupled", "models that stream are not built")


def _there(config: dict[str, Any], words: Iterable[str]) -> list[str]:  # ModelConfig as JSON
    return [word for word in words if word in config]


def _component(raw: object) -> str:
    """The name of a file: one component of a path."""
    name = validators.text(raw)
    if "/" in name or name in (".", "..") or len(name.encode()) > 255:
        raise Wrong(f"{shown(name)} is not the name of a file in the version's folder")
    return name
