"""Environment variables that the processes of a server pass on to each other."""

from __future__ import annotations

from typing import Final

DUMPABLE: Final = "MMSUP_DUMPABLE"
"""`true` or `1`: debuggers of the same user may inspect keeper, controller and gateways, and they dump core. Set by an
operator or a test (inspection.py)."""
SOFT_FILES: Final = "MMSUP_SOFT_FILES"
"""The soft limit of open files with which the server was started. Workers get it back: code that calls select() cannot
use a number above 1023. Read and removed in worker/startup/resource_limits.py."""
WORKER_MARK: Final = "MMSUP_WORKER"
"""Names the worker to which a process belongs (supervisor/linux/worker_marks.py)."""
HUGE_PAGES: Final = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""Variable and value that have the C library ask for huge pages for its heap, where the kernel gives them on request.
Workers of ONNX models get it unless an operator configured that variable for their model, and remove it
(worker/startup/resource_limits.py): it is read once, at the start."""
BLAS_WAIT: Final = ("OPENBLAS_THREAD_TIMEOUT", "22")
"""Variable and value by which the threads of OpenBLAS (numpy) wait for work for 2^22 ticks of the processor, 2 ms, and
then sleep. By its default of 2^26 each of them keeps a processor busy for 26 ms after it was started and after each
operation: half of all that the start of a forked worker took."""
