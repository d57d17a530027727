"""How the added time is spread: a curve for each gateway, a picture for each number of requests at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Spread = Mapping[str, Sequence[float]]


def plot(added_ms: Mapping[str, Spread], file: Path) -> None:
    """The share of requests to which no more was added, over milliseconds; `added_ms` by concurrency and name."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, row = pyplot.subplots(1, len(added_ms), figsize=(15, 4.5), sharey=True, layout="constrained", squeeze=False)
    for axes, (concurrency, spread) in zip(row[0], added_ms.items(), strict=True):
        for name, values in spread.items():
            axes.ecdf(np.maximum(values, 0.1), label=name)
        axes.set(title=f"{concurrency} at once", xlabel="milliseconds added", xscale="log")
        axes.grid(visible=True, which="both", alpha=0.3)
    row[0][0].set(ylabel="share of requests")
    figure.legend(*row[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
