"""Installs clients that cannot live beside tritonclient, each in a folder of its own: for test_other_clients.py.

    python tests/conformance/other_clients.py DIRECTORY
    pytest tests/conformance/test_other_clients.py --other-clients DIRECTORY

KServe's package registers the same protobuf symbols as tritonclient, MLServer wants other versions, and perf_analyzer
is a program inside an old wheel of tritonclient. It needs libcudart, which a wheel has, and libb64.so.0d: where the
system has none (Debian: `libb64-0d`), it is put into the folder `lib` by hand. What cannot be installed is left out,
and its tests are skipped.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ENVIRONMENTS = {"kserve": ["kserve"], "mlserver": ["mlserver"]}
PERF_ANALYZER = "tritonclient==2.48.0"
CUDA_RUNTIME = "nvidia-cuda-runtime-cu12"


def pip(python: Path | str, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", *arguments], check=True)


def install(folder: Path) -> None:
    for name, packages in ENVIRONMENTS.items():
        if not (folder / name).exists():
            venv.create(folder / name, with_pip=True)
            with contextlib.suppress(subprocess.CalledProcessError):
                pip(folder / name / "bin" / "python", "install", *packages)
    wheels = folder / "wheels"
    for each in (PERF_ANALYZER, CUDA_RUNTIME):
        pip(sys.executable, "download", "--no-deps", "--dest", str(wheels), each)
    (folder / "lib").mkdir(exist_ok=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(("/bin/perf_analyzer", "/libcudart.so.12")):
                    place = folder / Path(name).name if "bin" in name else folder / "lib" / Path(name).name
                    with archive.open(name) as source, place.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    place.chmod(0o755)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
