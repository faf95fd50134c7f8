"""Processes with a CUDA context that come and go by word: what they hold, and when it is back."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import pynvml

CODE = """
import ctypes, sys
import torch

for line in sys.stdin:
    word, _, amount = line.strip().partition(" ")
    size = int(amount or 0)
    if word == "context":
        torch.cuda.init(); torch.zeros(1, device="cuda"); torch.cuda.synchronize()
    elif word == "blas":
        a = torch.ones(256, 256, device="cuda"); (a @ a).sum().item()
    elif word == "dnn":
        torch.nn.functional.conv2d(torch.ones(1, 8, 32, 32, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda"))
        torch.cuda.synchronize()
    elif word == "hold":
        held = torch.ones(size, dtype=torch.uint8, device="cuda"); torch.cuda.synchronize()
    elif word == "cap":
        torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    elif word == "raw":
        pointer = ctypes.c_void_p()
        print(ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), flush=True)
        continue
    elif word == "try":
        try:
            torch.empty(size, dtype=torch.uint8, device="cuda"); print("allowed", flush=True)
        except torch.cuda.OutOfMemoryError:
            print("refused", flush=True)
        continue
    elif word == "own":
        print(torch.cuda.memory_reserved(), flush=True)
        continue
    print("done", flush=True)
"""


class ContextHolder:
    """One such process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def __enter__(self) -> ContextHolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, word: str, amount: int | str = "") -> str:
        """Do one of CODE's words; what it answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, amount, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the process ended at {word!r}")
        return answer

    def kill(self) -> float:
        """SIGKILL; seconds until the kernel says that it is gone."""
        fd = os.pidfd_open(self.pid)
        try:
            began = time.monotonic()
            os.kill(self.pid, signal.SIGKILL)
            select.select([fd], [], [])
            return time.monotonic() - began
        finally:
            os.close(fd)


class GpuCard:
    """Device 0, as NVML sees it."""

    def __init__(self) -> None:
        self._nvml: Any = pynvml  # a module that ships no types
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.name = str(pynvml.nvmlDeviceGetName(self._handle))
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())

    def used_bytes(self) -> int:
        """In all."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def total_bytes(self) -> int:
        """There is."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def used_by(self, pid: int) -> int | None:
        """What NVML says that one process holds; None: it does not list it."""
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return next((each.usedGpuMemory for each in listed if each.pid == pid), None)

    def released_after_s(self, goal_bytes: int, limit_s: float = 20.0) -> float:
        """Seconds until no more than this is used; infinite: it was not within the limit."""
        began = time.monotonic()
        while self.used_bytes() > goal_bytes:
            if time.monotonic() > began + limit_s:
                return float("inf")
            time.sleep(0.001)
        return time.monotonic() - began
