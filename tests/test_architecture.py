"""Who may import whom, and where each heavy library lives. If this fails, the design is wrong, not the test."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gateway", "ipc", "supervisor", "worker")

MAY_IMPORT = {
    "gateway": "api client_memory composition connections dispatch http infer observability rpc rpc/relay; ipc "
    "memory messages transport",
    "gateway/api": "api/description client_memory dispatch http infer observability protocol streaming; "
    "ipc messages tensors",
    "gateway/api/description": "dispatch http; ipc messages tensors",
    "gateway/client_memory": "; ipc messages",
    "gateway/composition": "dispatch http infer observability protocol waking; ipc memory messages transport",
    "gateway/connections": "http infer; ipc",
    "gateway/dispatch": "dispatch/streams protocol waking; ipc memory messages tensors transport",
    "gateway/dispatch/streams": "protocol; messages",
    "gateway/grpcio_front": "; ipc memory rpc transport",
    "gateway/http": "dispatch protocol; ipc",
    "gateway/http2": "; rpc",
    "gateway/caching": "dispatch observability protocol; ipc messages",
    "gateway/infer": "caching client_memory dispatch http observability protocol sequences waking; "
    "ipc memory messages tensors transport",
    "gateway/observability": "; ipc memory messages",
    "gateway/protocol": "client_memory protocol/sequences; ipc memory messages tensors transport",
    "gateway/protocol/sequences": "; ipc messages",
    "gateway/rpc": "connections dispatch http rpc/calls rpc/infer rpc/services http2 infer observability; ipc memory "
    "rpc",
    "gateway/rpc/calls": "http http2; ipc protobuf rpc",
    "gateway/rpc/infer": "dispatch http infer observability protocol protocol/sequences rpc/calls sequences streaming "
    "waking; ipc messages tensors",
    "gateway/rpc/relay": "http2 rpc/calls; rpc",
    "gateway/rpc/services": "client_memory dispatch observability protocol rpc/calls; ipc messages",
    "gateway/sequences": "dispatch protocol protocol/sequences; ipc memory messages",
    "gateway/streaming": "dispatch http infer observability protocol; ipc messages tensors",
    "gateway/waking": "; ipc messages",
    "ipc": "",
    "ipc/memory": "; ipc",
    "ipc/messages": "; ipc rpc",
    "ipc/protobuf": "",
    "ipc/rpc": "",
    "ipc/tensors": "",
    "ipc/transport": "; ipc messages",
    "supervisor": "controller",
    "supervisor/api": "gateways instances linux models observability on_demand postmortem processes resources "
    "runtime_settings uploads zygotes; ipc messages transport",
    "supervisor/capacity": "config instances processes state; ipc",
    "supervisor/chaos": "chaos/analysis chaos/clients chaos/inject chaos/observe chaos/plan chaos/server cli/command "
    "cli/ctl config; ipc",
    "supervisor/chaos/analysis": "chaos/observe chaos/plan",
    "supervisor/chaos/clients": "chaos/observe chaos/plan; ipc",
    "supervisor/chaos/inject": "chaos/clients chaos/observe chaos/plan chaos/server cli/ctl",
    "supervisor/chaos/observe": "; ipc",
    "supervisor/chaos/plan": "",
    "supervisor/chaos/server": "chaos/clients chaos/observe chaos/plan cli/ctl config linux; ipc",
    "supervisor/cli": "cli/command",
    "supervisor/cli/check": "cli/output cli/serve config repository repository/contents; ipc",
    "supervisor/cli/command": "cli/output; ipc",
    "supervisor/cli/ctl": "cli/command cli/output; ipc tensors",
    "supervisor/cli/output": "config",
    "supervisor/cli/plan": "capacity cli/command cli/ctl cli/output cli/serve config repository; ipc memory",
    "supervisor/cli/serve": "cli/command cli/output config linux repository; ipc",
    "supervisor/config": "; ipc messages rpc tensors transport",
    "supervisor/controller": "api capacity config eviction gateways gpu groups instances linux models observability "
    "on_demand postmortem processes repository resources runtime_settings state uploads zygotes; "
    "ipc memory messages transport",
    "supervisor/eviction": "capacity config instances linux models observability on_demand; memory",
    "supervisor/gateways": "config gpu instances linux models observability postmortem processes; ipc memory messages "
    "rpc transport",
    "supervisor/gpu": "observability processes; ipc transport",
    "supervisor/groups": "instances linux postmortem processes; ipc memory messages transport",
    "supervisor/instances": "config gpu linux observability postmortem processes; ipc memory messages transport",
    "supervisor/keeper": "config keeper/forking linux observability processes; ipc memory messages transport",
    "supervisor/keeper/forking": "linux; ipc memory messages transport",
    "supervisor/linux": "; ipc memory",
    "supervisor/models": "capacity config instances observability processes repository state; ipc messages transport",
    "supervisor/observability": "; ipc",
    "supervisor/on_demand": "capacity config instances models processes state; ipc memory",
    "supervisor/postmortem": "config observability state; ipc memory messages transport",
    "supervisor/processes": "linux; ipc memory messages transport",
    "supervisor/repository": "config repository/contents repository/ensembles; ipc protobuf tensors transport",
    "supervisor/repository/contents": "config; ipc",
    "supervisor/repository/ensembles": "config; ipc",
    "supervisor/resources": "capacity config gpu instances linux models processes zygotes; ipc",
    "supervisor/runtime_settings": "; ipc",
    "supervisor/state": "; ipc transport",
    "supervisor/uploads": "config models repository; ipc messages",
    "supervisor/zygotes": "linux observability processes; ipc messages transport",
    "worker": "execution hosting sequences serving startup streaming; ipc memory messages transport",
    "worker/batching": "; ipc memory messages tensors transport",
    "worker/calls": "execution; ipc messages tensors transport",
    "worker/client_memory": "engines/device execution; ipc messages tensors",
    "worker/engines": "calls engines/device execution; ipc tensors",
    "worker/engines/device": "execution; tensors",
    "worker/engines/triton_python": "calls engines engines/triton_python/api execution; ipc tensors",
    "worker/engines/triton_python/api": "calls execution; ipc tensors",
    "worker/execution": "; ipc memory messages tensors transport",
    "worker/hosting": "execution sequences serving startup streaming; ipc memory messages transport",
    "worker/sequences": "batching execution serving; ipc memory messages tensors transport",
    "worker/serving": "batching calls client_memory execution startup; ipc memory messages tensors transport",
    "worker/startup": "execution; ipc memory messages tensors transport",
    "worker/streaming": "calls execution serving startup; memory messages transport",
    "worker/zygote": "; ipc memory messages transport",
}
"""Sub-package to those that it may import: of its own process folder; of ipc (`ipc`: the files of the folder itself).

Imports for typing count. A sub-package may always import itself. There is no cycle between them, nor between files.
"""

HOMES = {
    "zmq": {"ipc/transport/zeromq_channel.py"},
    "msgpack": {"ipc/transport/codec.py"},
    "torch": {"worker/engines/pytorch.py", "worker/engines/device/torch_streams.py"},
    "safetensors": {"worker/engines/pytorch.py"},
    "onnxruntime": {"worker/engines/ort.py"},
    "aiohttp": {"gateway/"},
    "uvloop": {"gateway/"},
    "grpc": {"gateway/grpcio_front/", "supervisor/chaos/clients/rpc_client.py"},
    "hpack": {"gateway/http2/header_blocks.py"},
    "orjson": {"gateway/"},
    "prometheus_client": {"gateway/observability/metrics.py"},
    "psutil": {"supervisor/processes/usage.py"},
    "pynvml": {"supervisor/gpu/__main__.py"},
    "google": {"supervisor/repository/config_pbtxt.py", "ipc/protobuf/", "gateway/rpc/"},
    "yaml": {"supervisor/"},
    "click": {"supervisor/"},
    "rich": {"supervisor/"},
    "matplotlib": {"supervisor/chaos/analysis/plots.py"},
    "numpy": {"ipc/tensors/numpy_arrays.py", "worker/", "gateway/"},
    "ml_dtypes": {"ipc/tensors/numpy_arrays.py", "worker/", "gateway/"},
}

FORBIDDEN = {
    "pickle": "carries code",
    "marshal": "carries code",
    "shelve": "is pickle inside",
    "multiprocessing": "its resource tracker unlinks what others use; its queues hold locks of the dead",
}


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The nodes of its syntax tree, in order."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@pytest.fixture(scope="module", autouse=True)
def forget_nodes() -> Iterator[None]:
    """They take 70 MB, for these tests only; the garbage collector need not look at them meanwhile."""
    gc.disable()
    yield
    nodes.cache_clear()
    gc.enable()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module, node.lineno


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; a package by its `__init__`."""
    named = {}
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(("mmsup", *parts)).removesuffix(".__init__")] = path
    return named


def imported(path: Path, known: dict[str, Path]) -> Iterator[tuple[Path, int]]:
    """The files of the product that this one imports, for typing or not."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in below]
        else:
            continue
        yield from ((known[name], node.lineno) for name in names if name in known and known[name] != path)


def place_of(path: Path) -> str:
    return path.relative_to(ROOT).parent.as_posix()


def allowed(place: str) -> set[str]:
    """The sub-packages that the table lets this one import."""
    own, _, ipc = MAY_IMPORT[place].partition(";")
    top = place.partition("/")[0]
    return {place, *(f"{top}/{name}" for name in own.split()), *(_of_ipc(name) for name in ipc.split())}


def _of_ipc(name: str) -> str:
    return "ipc" if name == "ipc" else f"ipc/{name}"


def test_sub_packages_import_what_the_table_says_and_nothing_else() -> None:
    known = modules()
    for path in sources():
        for name, line in imports(path):
            assert name.split(".")[0] not in FOLDERS, f"{path}:{line}: say mmsup.{name}"
        for other, line in imported(path, known):
            place, target = place_of(path), place_of(other)
            assert target in allowed(place), f"{path}:{line}: {place} must not import {target}"


def test_the_table_names_what_is_imported_and_no_more() -> None:
    known = modules()
    used = {place: {place} for place in MAY_IMPORT}
    for path in sources():
        used[place_of(path)] |= {place_of(other) for other, _ in imported(path, known)}
    for place in MAY_IMPORT:
        assert allowed(place) == used[place], f"{place}: {sorted(allowed(place) ^ used[place])}"


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """One cycle, or nothing."""
    state: dict[str, bool] = {}
    way: list[str] = []

    def visit(here: str) -> list[str]:
        state[here] = False
        way.append(here)
        for there in sorted(arrows.get(here, ())):
            if state.get(there) is False:
                return [*way[way.index(there) :], there]
            if there not in state and (found := visit(there)):
                return found
        state[here] = True
        way.pop()
        return []

    return next((found for each in arrows if each not in state and (found := visit(each))), [])


def test_there_is_no_cycle_between_files_nor_between_sub_packages() -> None:
    known = modules()
    files = {str(path): {str(other) for other, _ in imported(path, known)} for path in sources()}
    places: dict[str, set[str]] = {}
    for path in sources():
        targets = {place_of(other) for other, _ in imported(path, known)}
        places.setdefault(place_of(path), set()).update(targets - {place_of(path)})
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle(files) == []
    assert cycle(places) == []


STARTED_BY_NAME = {"supervisor/run.py"}
"""Beside every `__main__.py`: what another process starts with `python -m`."""


def test_every_module_is_imported_by_another_one_of_the_product() -> None:
    known = modules()
    reached = {other for path in sources() for other, _ in imported(path, known)}
    text = "".join(path.read_text() for path in sources())
    for path in sources():
        is_entry = path.name in ("__init__.py", "__main__.py") or path.relative_to(ROOT).as_posix() in STARTED_BY_NAME
        named = any(word in text for word in _as_string(path))
        assert path in reached or is_entry or named, f"{path}: nothing of the product imports it"


def _as_string(path: Path) -> list[str]:
    """How a string names a module that is imported by its name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    whole = ".".join(("mmsup", *parts))
    return [f'"{whole}"', f'"{path.stem}"', f'"{path.stem}.'] if parts[:2] == ("worker", "engines") else [f'"{whole}"']


def test_each_heavy_library_is_imported_in_its_home_only() -> None:
    for path in sources():
        place = path.relative_to(ROOT).as_posix()
        for name, line in imports(path):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None:
                assert any(place.startswith(home) for home in homes), f"{place}:{line}: {name} lives in {homes}"


def test_nothing_that_carries_code_or_owns_locks_is_imported() -> None:
    for path in sources():
        for name, line in imports(path):
            reason = FORBIDDEN.get(name.split(".")[0])
            assert reason is None, f"{path}:{line}: {name} {reason}"


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_no_decision_rests_on_the_wall_clock_and_no_code_comes_from_data() -> None:
    people_read_it = {
        "supervisor/observability/event_log.py",
        "supervisor/controller/event_console.py",
        "gateway/observability/request_counters.py",
    }
    for path in sources():
        place = path.relative_to(ROOT).as_posix()
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            name = called(node)
            assert name not in {"eval", "yaml.load", "np.prod", "numpy.prod", "os.system"}, (
                f"{place}:{node.lineno}: {name}"
            )
            if name in {"time.time", "time.time_ns"}:
                assert place in people_read_it, (
                    f"{place}:{node.lineno}: time.time is for people; decisions use monotonic"
                )


def test_no_file_bears_the_name_of_a_dependency() -> None:
    for path in sources():
        assert path.stem not in {*HOMES, "grpc", "msgpack", "protobuf", "prometheus"}, f"{path} hides a library"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "mmsup.supervisor.keeper.__main__",
            ("numpy", "torch", "aiohttp", "zmq", "msgpack", "yaml", "psutil", "click", "google"),
        ),
        (
            "mmsup.supervisor.controller.__main__",
            ("numpy", "ml_dtypes", "torch", "onnxruntime", "aiohttp", "zmq", "rich"),
        ),
        (
            "mmsup.supervisor.cli.main",
            ("numpy", "torch", "onnxruntime", "aiohttp", "zmq", "rich", "yaml", "google", "psutil"),
        ),
        ("mmsup.worker.serving.loop", ("torch", "onnxruntime", "aiohttp", "psutil")),
        ("mmsup.gateway.api.app", ("torch", "onnxruntime", "psutil", "yaml")),
    ],
)
def test_a_process_starts_without_the_libraries_of_the_others(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}\nprint(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not set(absent) & set(loaded)


def test_sources_stay_within_their_ceilings() -> None:
    for path in sources():
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"{path} has {len(lines)} lines"
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno}: {node.name} is too long"


def test_a_folder_has_at_most_fifteen_files() -> None:
    files: dict[str, int] = {}
    for path in sources():
        files[place_of(path)] = files.get(place_of(path), 0) + (path.name != "__init__.py")
    assert {place: count for place, count in files.items() if count > 15} == {}


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in sources():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                yield path, node


def attributes(node: ast.ClassDef) -> set[str]:
    """Fields of its objects: those that its body declares, and those that its methods set on `self`."""
    found = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    }
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            found.add(each.attr)
    return found


def is_record(node: ast.ClassDef) -> bool:
    """Options and messages: a frozen dataclass, or one without methods."""
    decorators = [ast.unparse(each) for each in node.decorator_list]
    has_methods = any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
    return any(each.startswith("dataclass") and ("frozen=True" in each or not has_methods) for each in decorators)


def test_a_class_has_at_most_fifteen_methods_and_twelve_attributes() -> None:
    for path, node in classes():
        methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert len(methods) <= 15, f"{path}: {node.name} has {len(methods)} methods"
        fields = attributes(node)
        assert len(fields) <= 12 or is_record(node), f"{path}: {node.name} has {len(fields)} attributes"


def test_no_two_classes_have_the_same_name() -> None:
    named: dict[str, list[str]] = {}
    for path, node in classes():
        named.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


WALL_CLOCK = {
    "gateway/observability/request_counters.py": "the time of the last inference, as Triton's statistics show it",
    "supervisor/observability/console.py": "log lines",
    "supervisor/observability/event_log.py": "the journal",
}


def test_the_wall_clock_decides_nothing_so_that_it_may_jump() -> None:
    reads = re.compile(r"\b(?:time\.(?:time|time_ns|localtime|gmtime)|CLOCK_REALTIME|datetime\.(?:now|utcnow|today))\b")
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        if reads.search(path.read_text()) and "chaos" not in path.parts  # a report says when it was made
    }
    assert found == WALL_CLOCK.keys(), "waits, deadlines and ages are measured by time.monotonic()"
