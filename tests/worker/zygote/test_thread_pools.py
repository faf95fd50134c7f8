from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mmsup.ipc.environment import BLAS_WAIT

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
count = next(getattr(library, name)() for name in names if hasattr(library, name))
others = [f"/proc/self/task/{each}/" for each in os.listdir("/proc/self/task") if int(each) != os.getpid()]
while any(" R " in open(each + "stat").read() for each in others):
    os.sched_yield()
print(json.dumps([count, sum(int(open(each + "schedstat").read().split()[0]) for each in others)]))
"""


@pytest.mark.parametrize(("said", "found"), [("2", 2), ("1", 1), ("3,1", 3), ("many", 1), ("0", 1)])
def test_the_pool_of_numpy_has_the_size_that_is_said_later(said: str, found: int) -> None:
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", BLAS_WAIT[0]: BLAS_WAIT[1]}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, said], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    if "StopIteration" in result.stderr:
        pytest.skip("this numpy has no OpenBLAS of its own")
    count, waited_ns = json.loads(result.stdout)
    assert count == found, result.stderr
    assert waited_ns < 13e6 * found, "each thread waits for its first work for 2 ms, and not for 26"
