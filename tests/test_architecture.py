"""Who may import whom, and where each heavy library lives. If this fails, the design is wrong, not the test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gateway", "ipc", "supervisor", "worker")

MAY_IMPORT = {
    "ipc": {"ipc"},
    "worker": {"ipc", "worker"},
    "gateway": {"ipc", "gateway"},
    "supervisor": {"ipc", "supervisor"},
}

HOMES = {
    "zmq": {"ipc/transport/zeromq_channel.py"},
    "msgpack": {"ipc/transport/codec.py"},
    "torch": {"worker/engines/pytorch.py", "worker/engines/device/torch_streams.py"},
    "safetensors": {"worker/engines/pytorch.py"},
    "onnxruntime": {"worker/engines/ort.py"},
    "aiohttp": {"gateway/"},
    "uvloop": {"gateway/"},
    "orjson": {"gateway/"},
    "prometheus_client": {"gateway/observability/metrics.py"},
    "psutil": {"supervisor/processes/usage.py"},
    "pynvml": {"supervisor/gpu/__main__.py"},
    "google": {"supervisor/repository/config_pbtxt.py"},
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


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module, node.lineno


def test_process_folders_import_only_themselves_and_ipc() -> None:
    for path in sources():
        folder = path.relative_to(ROOT).parts[0]
        for name, line in imports(path):
            parts = name.split(".")
            assert parts[0] not in FOLDERS, f"{path}:{line}: say mmsup.{name}"
            if parts[0] == "mmsup" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[folder], f"{path}:{line}: {folder} must not import {parts[1]}"


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
        for node in ast.walk(ast.parse(path.read_text())):
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
            "mmsup.supervisor.keeper.bootstrap",
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
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno}: {node.name} is too long"
