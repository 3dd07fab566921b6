"""Pictures of what was measured; needs matplotlib (extra `tuning`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # the backend is chosen before

from .optimize import Comparison
from .search import Trial, describe

__all__ = ["plot_forms", "plot_frontier"]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255")
"""Paul Tol's bright scheme: told apart by all eyes, and in grey."""


def plot_forms(comparison: Comparison, path: Path) -> None:
    """Draw rows per second and latency of each form by batch size; what differs from the original is hatched."""
    sizes = comparison.options.batches
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    width = 0.8 / len(comparison.measured)
    for index, measured in enumerate(comparison.measured):
        label = measured.form.name + ("" if measured.accepted else " (differs)")
        if measured is comparison.winner:
            label += " (winner)"
        places = [place + (index - (len(comparison.measured) - 1) / 2) * width for place in range(len(sizes))]
        latencies = [measured.timings[size].latency_s if size in measured.timings else float("nan") for size in sizes]
        style: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)], "label": label}
        if not measured.accepted:
            style |= {"hatch": "///", "alpha": 0.55}
        axes[0].bar(places, [size / s for size, s in zip(sizes, latencies, strict=True)], width * 0.94, **style)
        axes[1].bar(places, [s * 1e3 for s in latencies], width * 0.94, **style)
    for axis, title, unit in ((axes[0], "Throughput", "rows/s"), (axes[1], "Latency of a call", "ms")):
        axis.set_yscale("log")
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set_xlabel("batch size, rows")
        axis.set_ylabel(f"{unit} (log)")
        axis.set_title(title)
        axis.grid(axis="y", which="both", alpha=0.25)
        axis.set_axisbelow(True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Forms of {Path(comparison.model).name}, in-process")
    figure.savefig(path, dpi=90)
    plt.close(figure)


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
    axis.set_xlim(left=0)
    axis.set_xlabel("answers per second (open loop, Poisson arrivals)")
    axis.set_ylabel(f"{objective.name}, ms (log), from the intended start")
    axis.set_title(title)
    axis.grid(which="both", alpha=0.25)
    axis.legend(loc="best", frameon=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
