from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
PROGRAM = """
import ctypes, json, os, sys
import numpy
from mmsup.worker.zygote.thread_pools import ThreadPools, _loaded_libraries
pools = ThreadPools()
pools.set_sizes({"OPENBLAS_NUM_THREADS": sys.argv[1], "OMP_NUM_THREADS": sys.argv[1]})
path = next(path for path, kind in _loaded_libraries() if kind == "openblas")
library = ctypes.CDLL(path)
names = [f"{before}openblas_get_num_threads{after}" for before in ("scipy_", "") for after in ("64_", "")]
print(json.dumps(next(getattr(library, name)() for name in names if hasattr(library, name))))
"""


@pytest.mark.parametrize(("said", "found"), [("2", 2), ("1", 1), ("3,1", 3), ("many", 1), ("0", 1)])
def test_the_pool_of_numpy_has_the_size_that_is_said_later(said: str, found: int) -> None:
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, said], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    if "StopIteration" in result.stderr:
        pytest.skip("this numpy has no OpenBLAS of its own")
    assert json.loads(result.stdout) == found, result.stderr
