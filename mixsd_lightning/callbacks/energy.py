"""Energy, where the machine meters it."""

from contextlib import suppress
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Energy of all processor packages (Linux powercap, as far as it may be read) and of all visible NVIDIA cards (NVML).

    These are meters of the whole machine: whatever else runs on it is in them.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """
        Args:
            powercap: Where Linux shows the counters of the processors.
        """
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it; AMD's processors have the same names.
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._cards = _cards()
        self._last = self._counters()

    def read(self) -> float | None:
        """Joules since the last reading, or the beginning; ``None`` where nothing is metered.

        A processor's counter starts again after minutes to hours: it has to be read more often than that.
        """
        now = self._counters()
        joules = [_difference(self._last[name], *now[name]) for name in now.keys() & self._last.keys()]
        self._last = now
        return sum(joules) if joules else None

    def _counters(self) -> dict[str, tuple[float, float]]:
        """Every meter and where it starts again, in joules."""
        found = {}
        for zone in self._packages:
            with suppress(OSError, ValueError):  # only root may read them on many systems
                energy, size = (float((zone / file).read_text()) / 1e6 for file in ("energy_uj", "max_energy_range_uj"))
                found[zone.name] = energy, size
        for index, read in enumerate(self._cards):
            found[f"card {index}"] = read() / 1e3, 0.0
        return found


def _difference(before: tuple[float, float], now: float, size: float) -> float:
    return now - before[0] if now >= before[0] else now + size - before[0]


def _cards() -> list:
    """For each visible card, a function that reads its counter in millijoules."""
    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    readers = []
    with suppress(pynvml.NVMLError):  # cards before Volta have no counter
        pynvml.nvmlInit()
        for index in range(torch.cuda.device_count()):
            uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            readers.append(lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    return readers
