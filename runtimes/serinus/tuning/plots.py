"""Pictures of what was measured; needs matplotlib (extra `tuning`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen before
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # as above

from .forms.optimizer import Comparison
from .search import Trial, describe

__all__ = ["plot_forms", "plot_frontier"]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255")
"""Paul Tol's bright scheme: told apart by all eyes, and in grey."""


_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _plain(axis: Any) -> None:
    """Write 20 and 0.05 where matplotlib would write powers of ten, and between the decades, too, where those are few."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    low, high = axis.get_view_interval()
    if high / max(low, 1e-12) < 300:
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    else:
        axis.set_minor_formatter(NullFormatter())


def plot_forms(comparison: Comparison, path: Path) -> None:
    """Draw rows per second and latency of each form by batch size; what differs from the original is hatched."""
    sizes = comparison.options.batches
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for index, measured in enumerate(comparison.measured):
        label = measured.form.name + ("" if measured.accepted else " (differs)")
        if measured is comparison.winner:
            label += " (winner)"
        latencies = [measured.timings[size].latency_s if size in measured.timings else float("nan") for size in sizes]
        # Points, not bars: a bar on a logarithmic axis begins where the axis happens to.
        style: dict[str, Any] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "label": label,
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 8,
            "linewidth": 2.2 if measured is comparison.winner else 1.2,
            "linestyle": "-" if measured.accepted else ":",
        }
        axes[0].plot(range(len(sizes)), [size / s for size, s in zip(sizes, latencies, strict=True)], **style)
        axes[1].plot(range(len(sizes)), [s * 1e3 for s in latencies], **style)
    for axis, title, unit in ((axes[0], "Throughput", "rows/s"), (axes[1], "Latency of a call", "ms")):
        axis.set_yscale("log")
        _plain(axis.yaxis)
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.margins(x=0.15, y=0.1)
        axis.set_xlabel("batch size, rows")
        axis.set_ylabel(f"{unit} (log)")
        axis.set_title(title)
        axis.grid(axis="y", which="both", alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Forms of {_title(comparison.model)}, in-process")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _title(model: str) -> str:
    """The last two parts of a path: `resnet50/torch`."""
    return "/".join(Path(model).parts[-2:])


def plot_frontier(trials: Sequence[Trial], chosen: Any, default: Any, slo: Any, path: Path, title: str) -> None:
    """Draw every trial: achieved rate against the latency of the strictest quantile, and the SLO's bound.

    Args:
        trials: all, of every configuration.
        chosen: configuration of the winner.
        default: configuration of the default settings.
        slo: its strictest objective is the axis.
        path: of the PNG.
        title: of the picture.
    """
    objective = slo.strictest
    figure, axis = plt.subplots(figsize=(8.5, 5), constrained_layout=True)
    finite = [t for t in trials if t.quantiles_s[objective.quantile] < float("inf")]
    lost = [t for t in trials if t.quantiles_s[objective.quantile] == float("inf")]
    top = max([objective.limit_s, *(t.quantiles_s[objective.quantile] for t in finite)]) * 2e3
    others = [t for t in finite if t.config not in (chosen, default)]
    if others:
        axis.scatter(
            [t.achieved_per_s for t in others],
            [t.quantiles_s[objective.quantile] * 1e3 for t in others],
            s=28,
            color="#bbbbbb",
            label="other settings that were tried",
            zorder=2,
        )
    drawn = [(default, _COLOURS[1], "as it was", "s")] if default != chosen else []
    drawn.append((chosen, _COLOURS[0], f"chosen: {describe(chosen)}", "o"))
    for config, colour, label, marker in drawn:
        own = sorted((t for t in finite if t.config == config), key=lambda t: t.rate_per_s)
        axis.plot(
            [t.achieved_per_s for t in own],
            [t.quantiles_s[objective.quantile] * 1e3 for t in own],
            marker=marker,
            color=colour,
            label=label,
            zorder=3,
        )
    if lost:
        axis.scatter(
            [t.achieved_per_s for t in lost], [top] * len(lost), marker="^", color="#222222", label="requests lost"
        )
    axis.axhline(objective.limit_s * 1e3, color="#222222", linestyle="--", linewidth=1)
    axis.annotate(
        f"SLO {objective}",
        (0.01, objective.limit_s * 1e3),
        xycoords=("axes fraction", "data"),
        xytext=(2, 4),
        textcoords="offset points",
    )
    axis.set_yscale("log")
    _plain(axis.yaxis)
    axis.set_xlim(left=0)
    axis.set_xlabel("answers per second (open loop, Poisson arrivals)")
    axis.set_ylabel(f"{objective.name}, ms (log), from the intended start")
    axis.set_title(title)
    axis.grid(which="both", alpha=0.25)
    axis.legend(loc="best", frameon=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
