"""The fault table: what may befall whom, and for the rows that no test shows yet, why.

A test of a row carries `pytest.mark.fault("F2")`; `test_table.py` holds this list against the marks.
"""

from __future__ import annotations

from typing import Final

ROWS: Final = {
    "F1": "SIGKILL of an idle worker",
    "F2": "SIGKILL of a worker with requests in flight",
    "F3": "a fatal signal or an exit in infer",
    "F4": "a Python exception in infer",
    "F5": "SIGBUS on shared memory",
    "F6": "a crash at import or load",
    "F7": "a load that hangs",
    "F8": "a crash loop of one of many models",
    "F9": "all workers die at once",
    "F10": "a stopped, locked or looping worker, and one that is only slow",
    "F11": "a run slower than its deadline",
    "F12": "a worker that cannot be killed",
    "F13": "a request that kills its worker each time",
    "F14": "a slow leak",
    "F15": "out of memory in a worker's control group",
    "F16": "out of memory by a child of a worker",
    "F17": "memory pressure on the machine",
    "F18": "CUDA out of memory",
    "F19": "a CUDA fault that ends the context",
    "F20": "GPU memory that does not come back",
    "F21": "NVML hangs or dies",
    "F22": "a bomb of processes or threads",
    "F23": "descriptors used up in a worker",
    "F24": "a model that takes all the CPU it can get",
    "F25": "SIGKILL of the controller",
    "F25b": "SIGKILL of the keeper",
    "F26": "SIGKILL of a gateway",
    "F27": "a gateway whose loop is blocked",
    "F28": "a controller that hangs",
    "F28b": "a keeper that hangs",
    "F29": "a second server on the same directories",
    "F30": "a death while loading, unloading, swapping, upgrading",
    "F31": "SIGTERM under load",
    "F32": "the wall clock jumps",
    "F33": "pids that are used again",
    "F34": "a full disk of logs, a reader of stdout that does not read",
    "F35": "metrics read during a restart",
    "F36": "arena memory used up",
    "F37": "leftovers of a former life",
    "F38": "a worker that scribbles, and lies about its replies",
    "F39": "an output torn by a death",
    "F40": "a worker that stops reading",
    "F41": "a reply lost, doubled, late, unknown",
    "F42": "an intruder on a socket of ours",
    "F43": "the folder of sockets removed, a path stolen",
    "F44": "a client's memory region changed in flight",
    "F45": "slow clients",
    "F46": "JSON made to hurt",
    "F47": "compressed bodies made to hurt",
    "F48": "sizes that lie",
    "F49": "shapes and datatypes that lie",
    "F50": "clients that hang up",
    "F51": "floods of connections and requests",
    "F52": "chunks and lengths made to smuggle",
    "F53": "gRPC floods",
    "F54": "loads and unloads of one model by many at once",
    "F55": "the end of a zygote, the process that workers are forked of, by a signal or by the kernel for memory",
    "F56": "a zygote that is stopped, or hangs before a fork",
    "F57": "a zygote that cannot fork safely: a second thread, CUDA, other code on disk",
    "F58": "a zygote that does not come up",
    "F59": "a load that does not fit the memory budget",
}

OPEN: Final = {
    "F17": "nothing is evicted yet: models are not loaded on demand",
    "F44": "clients share no memory with the server yet",
    "F53": "there is no gRPC front yet",
}
"""Rows that no test shows, with the reason that a reader of the README gets."""
