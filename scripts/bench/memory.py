"""Peak memory of this process, for the benchmarks."""

import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

_STATUS = Path("/proc/self/status")


def peak_megabytes() -> float:
    """Peak resident memory in MiB.

    On Linux from the kernel's count for this program alone: `getrusage` also remembers the process that started it.
    """
    if _STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class AllocationWatch:
    """Peak of what is allocated while the block runs, in MiB, looked at every few milliseconds (Linux).

    It leaves out the libraries' own files, whose pages come and go with whatever else the machine does.
    """

    def __enter__(self) -> "AllocationWatch":
        self._before = self._peak = _status("RssAnon")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self._peak = max(self._peak, _status("RssAnon"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        """The peak, less what was there before."""
        return self._peak - self._before


def _status(name: str) -> float:
    """A figure of the kernel's about this process, in MiB."""
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10
