"""The functions' memory over many requests: a line that stays level, or one that grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.gateway import load, processes
from tests.benchmarks.gateway.load import Call

WARM_COUNT = 200
EVERY = 100
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident megabytes after so many requests, the first after the warm-up."""

    requests: Sequence[int]
    megabytes: Sequence[float]

    def slope_kb(self) -> float:
        """KB for 1,000 requests, by a straight line through the second half."""
        half = len(self.requests) // 2
        slope = np.polyfit(self.requests[half:], self.megabytes[half:], 1)[0]
        return float(slope) * 1024 * 1000


async def measure(origin: str, pid: int, calls: Sequence[Call]) -> Growth:
    """Ask all, some at once, and look at the process every hundred; the warm-up comes before the first look."""
    await load.run(origin, calls[:WARM_COUNT], CONNECTIONS)
    requests, megabytes = [0], [processes.resident_mb(pid)]

    def look(count: int) -> None:
        if count % EVERY == 0:
            requests.append(count)
            megabytes.append(processes.resident_mb(pid))

    await load.run(origin, calls[WARM_COUNT:], CONNECTIONS, look)
    return Growth(requests, megabytes)


def plot(growth: Growth, file: Path) -> None:
    """The line over an axis from zero, so that a growth looks as large as it is."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(growth.requests, growth.megabytes)
    axes.set(title="Memory of the functions' process", xlabel="requests", ylabel="resident MB")
    axes.set_ylim(0, max(growth.megabytes) * 1.15)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
