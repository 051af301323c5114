"""Peak memory of this process, for the benchmarks."""

import resource
import sys
from pathlib import Path


def peak_megabytes() -> float:
    """Peak resident memory in MiB.

    On Linux from the kernel's count for this program alone: `getrusage` also remembers the process that started it.
    """
    if (status := Path("/proc/self/status")).exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
